"""Forests, rows and angles to compute with."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.native.layout import Layout
from adapterhub.native.plain_attention import AttentionShape


@st.composite
def layouts(draw: st.DrawFn, longest: int = 20) -> Layout:
    """Random forests: texts of their own, beginnings that many share, beginnings of beginnings."""
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=12))
    parents = [draw(st.integers(-1, i - 1)) for i in range(len(lengths))]
    return Layout.of(lengths, parents)


shapes = st.builds(
    lambda kv_heads, groups, half, scale, window: AttentionShape(kv_heads * groups, kv_heads, 2 * half, scale, window),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 3, 4, 7]),
    st.sampled_from([4, 5, 8, 12, 16, 32, 64]),
    st.sampled_from([0.125, 0.5]),
    st.sampled_from([None, 1, 3, 9, 17]),
)


def angles(layout: Layout, shape: AttentionShape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Tables of cosines and sines, one row longer than needed."""
    steps = torch.outer(torch.arange(layout.longest + 1).double(), torch.logspace(0, -3, shape.dim // 2).double())
    both = steps.repeat(1, 2)
    return both.cos().to(dtype), both.sin().to(dtype)


def rows(layout: Layout, shape: AttentionShape, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries, keys and values, and a gradient of the output; equal in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    qkv, dout = (
        torch.randn(layout.tokens, width, generator=generator) for width in (shape.features, shape.out_features)
    )
    return qkv.bfloat16().to(dtype), dout.bfloat16().to(dtype)
