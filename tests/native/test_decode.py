"""Attention of decoding rows against each query by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.native import decode
from adapterhub.native.decode import decode_attention
from adapterhub.native.entries import Entries
from adapterhub.native.library import native

here = pytest.mark.skipif(native() is None, reason="no kernels can be built here")


@here
@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 5, 8, 31, 130, 300]), min_size=1, max_size=6),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 4, 7]),
    dim=st.sampled_from([16, 48, 64, 128]),
    window=st.sampled_from([None, 1, 7, 140]),
    apart=st.booleans(),
)
def test_each_query_over_its_own_row(
    lengths: list[int], kv_heads: int, group: int, dim: int, window: int | None, apart: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    heads, count = kv_heads * group, len(lengths)
    cached = torch.full((2, count + 1, kv_heads, 320, dim), float("nan"))  # whatever nobody looks at
    rows = [(i + 1) % (count + 1) for i in range(count)]
    tokens = list(range(count - 1, -1, -1))
    for row, length in zip(rows, lengths, strict=True):
        cached[:, row, :, :length] = torch.randn(2, kv_heads, length, dim, generator=generator)
    q = torch.randn(count + 1, heads, dim, generator=generator)
    if apart:  # beside keys in one tensor, or head by head
        q = torch.cat([q, q], dim=1)[:, :heads] if group % 2 else q.transpose(0, 1).contiguous().transpose(0, 1)
    out = torch.full((count + 1, heads * dim), 7.0)
    assert decode_attention(q, cached, Entries(tokens, rows, lengths), 0.25, window, out)
    assert (out[count] == 7).all()
    for token, row, length in zip(tokens, rows, lengths, strict=True):
        low = 0 if window is None else max(0, length - window)
        for head in range(heads):
            keys, values = cached[:, row, head // group, low:length].double()
            expected = torch.softmax(keys @ q[token, head].double() * 0.25, 0) @ values
            torch.testing.assert_close(out[token].view(heads, dim)[head].double(), expected, rtol=1e-4, atol=1e-5)


@here
def test_what_is_not_finite_shows() -> None:
    cached = torch.ones(2, 1, 1, 8, 16)
    cached[0, 0, 0, 3, 5] = float("nan")
    out = torch.empty(1, 16)
    assert decode_attention(torch.ones(1, 1, 16), cached, Entries([0], [0], [6]), 1.0, None, out)
    assert not torch.isfinite(out).any()
    assert decode_attention(torch.ones(1, 1, 16), cached, Entries([0], [0], [3]), 1.0, None, out)
    assert torch.isfinite(out).all()


def test_what_is_left_to_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = Entries([0], [0], [3])
    for dtype, dim in ((torch.float64, 16), (torch.bfloat16, 16), (torch.float32, 12)):
        q, cached, out = (torch.ones(size, dtype=dtype) for size in ((1, 1, dim), (2, 1, 1, 8, dim), (1, dim)))
        assert not decode_attention(q, cached, entries, 1.0, None, out)
    monkeypatch.setattr(decode, "native", lambda: None)
    assert not decode_attention(torch.ones(1, 1, 16), torch.ones(2, 1, 1, 8, 16), entries, 1.0, None, torch.ones(1, 16))
