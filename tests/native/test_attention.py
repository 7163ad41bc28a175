"""Attention over packed texts: the plain form against one query at a time, the kernels against the plain form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.native.attention import AttentionShape, attention_backward, attention_forward
from adapterhub.native.layout import Layout
from adapterhub.native.library import native
from adapterhub.native.plain_attention import plain_attention_backward, plain_attention_forward

from .making import angles, layouts, rows, shapes

here = pytest.mark.skipif(native() is None, reason="no kernels can be built here")


def path(layout: Layout, segment: int) -> list[int]:
    """Tokens of a segment's ancestors and its own."""
    above = path(layout, layout.parents[segment]) if layout.parents[segment] >= 0 else []
    return [*above, *range(layout.starts[segment], layout.stops[segment])]


def by_query(qkv: Tensor, layout: Layout, cos: Tensor, sin: Tensor, shape: AttentionShape) -> Tensor:
    """The output [tokens, heads * dim], one segment, head and query at a time; autograd follows."""
    heads = qkv.view(layout.tokens, -1, shape.dim)
    half = shape.dim // 2
    out: dict[int, list[Tensor]] = {}
    for segment, start in enumerate(layout.starts):
        tokens = path(layout, segment)
        part = heads[tokens]
        c, s = cos[: len(tokens), None], sin[: len(tokens), None]
        turned = part * c + torch.cat([-part[..., half:], part[..., :half]], -1) * s
        for token in range(start, layout.stops[segment]):
            at = tokens.index(token)
            low = 0 if shape.window is None else max(0, at - shape.window + 1)
            found = []
            for head in range(shape.heads):
                own = shape.heads + head // (shape.heads // shape.kv_heads)
                p = torch.softmax(turned[low : at + 1, own] @ turned[at, head] * shape.scale, 0)
                found.append(p @ part[low : at + 1, own + shape.kv_heads])
            out[token] = found
    return torch.stack([torch.cat(out[token]) for token in range(layout.tokens)])


@settings(max_examples=25, deadline=None)
@given(layouts(longest=4), shapes, st.integers(0, 99))
def test_the_plain_form_is_attention_of_each_query(layout: Layout, shape: AttentionShape, seed: int) -> None:
    qkv, dout = rows(layout, shape, seed, torch.float64)
    cos, sin = angles(layout, shape, torch.float64)
    qkv.requires_grad_()
    expected = by_query(qkv, layout, cos, sin, shape)
    expected.backward(dout)
    with torch.no_grad():
        out, lse = attention_forward(qkv, layout, cos, sin, shape)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        assert lse.dtype == torch.float64
        dqkv = attention_backward(dout, qkv, out, lse, layout, cos, sin, shape)
    torch.testing.assert_close(dqkv, qkv.grad, rtol=1e-9, atol=1e-9)


def agree(layout: Layout, shape: AttentionShape, seed: int, dtype: torch.dtype, allowed: float) -> None:
    """Compare the kernels in `dtype` with the plain form in float64."""
    qkv, dout = rows(layout, shape, seed, dtype)
    cos, sin = angles(layout, shape)
    out, lse = attention_forward(qkv, layout, cos, sin, shape)
    dqkv = attention_backward(dout, qkv, out, lse, layout, cos, sin, shape)
    wide = [each.double() for each in (qkv, cos, sin, dout)]
    expected, sums = plain_attention_forward(wide[0], layout, wide[1], wide[2], shape)
    gradient = plain_attention_backward(wide[3], wide[0], expected, sums, layout, wide[1], wide[2], shape)
    for found, right in ((out, expected), (lse, sums), (dqkv, gradient)):
        torch.testing.assert_close(found.double(), right, rtol=allowed, atol=allowed * float(right.abs().max() + 1))


@here
@settings(max_examples=60, deadline=None)
@given(layouts(), shapes, st.integers(0, 99))
def test_kernels_are_as_exact_as_float32_is(layout: Layout, shape: AttentionShape, seed: int) -> None:
    """How exact that is depends on the scores' size, so the plain form in float32 says it, a few bits aside."""
    qkv, dout = rows(layout, shape, seed, torch.float32)
    angle = angles(layout, shape)
    wide = [each.double() for each in (qkv, dout, *angle)]

    def plainly(qkv: Tensor, dout: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        out, lse = plain_attention_forward(qkv, layout, cos, sin, shape)
        return [out, lse, plain_attention_backward(dout, qkv, out, lse, layout, cos, sin, shape)]

    out, lse = attention_forward(qkv, layout, *angle, shape)
    found = [out, lse, attention_backward(dout, qkv, out, lse, layout, *angle, shape)]
    for one, plain, right in zip(found, plainly(qkv, dout, *angle), plainly(*wide), strict=True):
        off, allowed = (float((each.double() - right).abs().max()) for each in (one, plain))
        assert off <= 3 * max(allowed, 2e-7 * float(right.abs().max() + 1))


@here
@settings(max_examples=25, deadline=None)
@given(layouts(), shapes, st.integers(0, 99))
def test_kernels_agree_in_bfloat16(layout: Layout, shape: AttentionShape, seed: int) -> None:
    agree(layout, shape, seed, torch.bfloat16, 2e-2)


@here
@pytest.mark.parametrize("window", [None, 100, 700])
def test_a_long_text_beside_short_ones_that_share_its_beginning(window: int | None) -> None:
    layout = Layout.of([3, 300, 1300, 200, 5, 1], [-1, -1, 1, 1, 2, -1])
    assert layout.longest == 1605
    agree(layout, AttentionShape(4, 2, 16, 0.25, window), 0, torch.float32, 5e-6)


@here
def test_bits_do_not_depend_on_threads() -> None:
    layout = Layout.of([40, *range(1, 60, 3), 700, 90], [-1, *[0] * 20, -1, 21])
    assert len(layout.forest.arrays["shared"]) > 3
    shape = AttentionShape(6, 2, 32, 0.2)
    qkv, dout = rows(layout, shape, 0, torch.float32)
    cos, sin = angles(layout, shape)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            out, lse = attention_forward(qkv, layout, cos, sin, shape)
            found.append((out, lse, attention_backward(dout, qkv, out, lse, layout, cos, sin, shape)))
    finally:
        torch.set_num_threads(before)
    for each in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], each, strict=True))


@here
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [0, 40, 60])
def test_what_is_not_finite_stays_so_and_in_its_text(value: float, column: int) -> None:
    layout, shape = Layout.of([4, 6, 3], [-1, -1, 1]), AttentionShape(4, 2, 8, 0.3)
    qkv, dout = rows(layout, shape, 0, torch.float32)
    cos, sin = angles(layout, shape)
    out, lse = attention_forward(qkv, layout, cos, sin, shape)
    dqkv = attention_backward(dout, qkv, out, lse, layout, cos, sin, shape)
    assert torch.isfinite(dqkv).all()
    bad = qkv.clone()
    bad[5, column] = value
    poisoned, sums = attention_forward(bad, layout, cos, sin, shape)
    gradient = attention_backward(dout, bad, poisoned, sums, layout, cos, sin, shape)
    if column != 40:  # a key of -inf may just look like one that nobody looks at
        assert not torch.isfinite(poisoned[4:10]).all()
    assert not torch.isfinite(gradient[4:10]).all()
    assert torch.equal(poisoned[:4], out[:4])
    assert torch.equal(gradient[:4], dqkv[:4])


def test_shapes_that_do_not_fit_are_refused() -> None:
    layout, shape = Layout.of([3]), AttentionShape(2, 1, 8, 0.3)
    cos, sin = angles(layout, shape)
    qkv = torch.zeros(3, 32)
    with pytest.raises(ValueError, match="qkv is"):
        attention_forward(qkv[:2], layout, cos, sin, shape)
    with pytest.raises(ValueError, match="angles are"):
        attention_forward(qkv, layout, cos[:2], sin, shape)
    with pytest.raises(ValueError, match="uneven"):
        attention_forward(torch.zeros(3, 56), layout, cos, sin, AttentionShape(3, 2, 8, 0.3))
