"""The check that freshly loaded kernels compute what plain PyTorch computes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .entries import Entries
from .kernels import DTYPES, Kernels
from .layout import Layout
from .panels import pack_panels
from .plain import plain_rms_norm, plain_rms_norm_backward, plain_swiglu, plain_swiglu_backward
from .plain_attention import AttentionShape, plain_attention_backward, plain_attention_forward
from .slots import SlabMatrices, SlotRows

# A beginning that two texts share, one that goes on from there, and a text of its own.
_LAYOUT = Layout.of([5, 3, 7, 2, 9], parents=[-1, 0, 0, 2, -1])
_SHAPE = AttentionShape(heads=4, kv_heads=2, dim=24, scale=0.2, window=11)
_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_WIDTH, _EPS = 37, 1e-5


def disagreement(kernels: Kernels) -> str | None:
    """Return which kernel differs from its reference, or None."""
    for dtype in DTYPES:
        for name, found, expected in _pairs(kernels, dtype):
            if not _close(found, expected):
                return f"{name} in {DTYPES[dtype]}"
    for name, found, expected in (*_products(kernels), *_updates(kernels), *_decoding(kernels)):
        if not _close(found, expected):
            return name
    return None


def _close(found: Tensor, expected: Tensor) -> bool:
    allowed = _ALLOWED[found.dtype] * max(1.0, float(expected.abs().max()))
    return torch.allclose(found.float(), expected.float(), rtol=0, atol=allowed)


def _pairs(kernels: Kernels, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    yield from _attention(kernels, draw(_LAYOUT.tokens, _SHAPE.features), draw(_LAYOUT.tokens, _SHAPE.out_features))
    x, delta, dy, weight = draw(6, _WIDTH), draw(6, _WIDTH), draw(6, _WIDTH), draw(_WIDTH)
    sum_, y, into = x.clone(), torch.empty_like(x), delta.clone()
    kernels.rms_norm(sum_, delta, weight, _EPS, y)
    yield "add_rms_norm", sum_, x + delta
    yield "rms_norm", y, plain_rms_norm(sum_, weight, _EPS)
    kernels.rms_norm_backward(dy, x, weight, _EPS, into)
    plain_rms_norm_backward(dy, x, weight, _EPS, delta)
    yield "rms_norm_backward", into, delta
    gate_up, act, dgate_up = draw(6, 2 * _WIDTH), torch.empty_like(x), draw(6, 2 * _WIDTH)
    kernels.swiglu(gate_up, act)
    yield "swiglu", act, plain_swiglu(gate_up)
    kernels.swiglu_backward(gate_up, dy, dgate_up, act)
    expected, again = plain_swiglu_backward(gate_up, dy)
    yield "swiglu_backward", dgate_up, expected
    yield "swiglu_backward", act, again


def _attention(kernels: Kernels, qkv: Tensor, dout: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    angles = torch.outer(torch.arange(_LAYOUT.longest), torch.logspace(0, -3, _SHAPE.dim // 2)).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    out, lse, dqkv = torch.empty_like(dout), torch.empty(_LAYOUT.tokens, _SHAPE.heads), torch.empty_like(qkv)
    kernels.attention_forward(qkv, _LAYOUT.forest, cos, sin, _SHAPE, out, lse)
    expected, sums = plain_attention_forward(qkv, _LAYOUT, cos, sin, _SHAPE)
    yield "attention_forward", out, expected
    yield "attention_forward", lse, sums
    kernels.attention_backward(dout, qkv, out, lse, _LAYOUT.forest, cos, sin, _SHAPE, dqkv)
    gradient = plain_attention_backward(dout, qkv, out, lse, _LAYOUT, cos, sin, _SHAPE)
    yield "attention_backward", dqkv, gradient


def _products(kernels: Kernels) -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_WIDTH, 600, generator=generator).bfloat16().float()
    panels = pack_panels(weight, kernels.panel_rows)
    assert panels is not None
    for rows in (1, 5, 17):
        x = torch.randn(rows, 600, generator=generator)
        y = torch.empty(rows, _WIDTH)
        kernels.product(x, panels, y)
        yield "product", y, x @ weight.T


def _updates(kernels: Kernels) -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(shape, generator=generator) for shape in ((4, _WIDTH), (2, 5, _WIDTH), (2, 5, _WIDTH)))
    y, z = torch.ones(4, _WIDTH), torch.empty(4, 5)
    slots = (1, 0, 0, 0)
    matrices, rows = SlabMatrices(a, [b], [0], _WIDTH), SlotRows({0: [1, 2, 3], 1: [0]})
    kernels.lora_updates(x, y, z, matrices.address, rows.address)
    yield "lora_updates", y, torch.stack([1 + row @ a[slot].T @ b[slot] for row, slot in zip(x, slots, strict=True)])


def _decoding(kernels: Kernels) -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    dim, length = 2 * kernels.lanes, 21
    q, cached = torch.randn(1, 4, dim, generator=generator), torch.randn(2, 1, 2, 30, dim, generator=generator)
    out, entries = torch.empty(1, 4 * dim), Entries([0], [0], [length])
    kernels.decode_attention(q, cached, entries.address, 0.3, 18, out)
    keys, values = cached[:, 0, :, length - 18 : length].repeat_interleave(2, dim=1)
    yield "decode_attention", out, (torch.softmax(keys @ q[0, :, :, None] * 0.3, 1).mT @ values).view(1, -1)
