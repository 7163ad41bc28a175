"""Norms and gated activations: the plain forms against autograd, the kernels against the plain forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.native.gated import swiglu, swiglu_backward
from adapterhub.native.library import native
from adapterhub.native.norm import add_rms_norm, rms_norm, rms_norm_backward

EPS = 1e-5
here = pytest.mark.skipif(native() is None, reason="no kernels can be built here")
sizes = st.tuples(st.integers(1, 9), st.sampled_from([1, 7, 8, 16, 31, 576]))
dtypes = st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().double()


def close(found: Tensor, expected: Tensor, allowed: float) -> None:
    expected = expected.detach()
    torch.testing.assert_close(found.double(), expected, rtol=allowed, atol=allowed * float(expected.abs().max() + 1))


def gated_backward(gate_up: Tensor, dact: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `swiglu_backward` makes of both, which stay as they are."""
    gradient, act = gate_up.detach().clone(), dact.clone()
    swiglu_backward(gradient, act)
    return gradient, act


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_plain_forms_are_what_autograd_gives(size: tuple[int, int]) -> None:
    x, weight, dy, into = draw(0, *size).requires_grad_(), draw(1, size[1]), draw(2, *size), draw(3, *size)
    expected = F.rms_norm(x, (size[1],), weight, EPS)
    expected.backward(dy)
    assert x.grad is not None
    right = into + x.grad
    with torch.no_grad():
        close(rms_norm(x, weight, EPS), expected, 1e-10)
        rms_norm_backward(dy, x, weight, EPS, into)
    close(into, right, 1e-10)
    gate_up = draw(4, size[0], 2 * size[1]).requires_grad_()
    gate, up = gate_up.chunk(2, -1)
    act = F.silu(gate) * up
    act.backward(dy)
    with torch.no_grad():
        close(swiglu(gate_up), act, 1e-10)
        found, again = gated_backward(gate_up, dy)
    close(again, act, 1e-10)
    assert gate_up.grad is not None
    close(found, gate_up.grad, 1e-10)


@here
@given(sizes, dtypes)
@settings(max_examples=60, deadline=None)
def test_kernels_agree(size: tuple[int, int], dtype: tuple[torch.dtype, float]) -> None:
    narrow, allowed = dtype
    x, weight, dy, into, gate_up = (
        draw(0, *size), draw(1, size[1]), draw(2, *size), draw(3, *size), draw(4, size[0], 2 * size[1])
    )  # fmt: skip
    mine = [each.to(narrow) for each in (x, weight, dy, into, gate_up)]
    close(rms_norm(mine[0], mine[1], EPS), rms_norm(x, weight, EPS), allowed)
    rms_norm_backward(mine[2], mine[0], mine[1], EPS, mine[3])
    rms_norm_backward(dy, x, weight, EPS, into)
    close(mine[3], into, allowed)
    close(swiglu(mine[4]), swiglu(gate_up), allowed)
    close(add_rms_norm(mine[0], mine[2], mine[1], EPS), add_rms_norm(x, dy, weight, EPS), 2 * allowed)
    close(mine[0], x, allowed)
    for found, expected in zip(gated_backward(mine[4], mine[2]), gated_backward(gate_up, dy), strict=True):
        close(found, expected, allowed)


@here
def test_numbers_of_any_size() -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, -87.0, -1e-30, 0.0, 1e-30, 1.0, 30.0, 88.0, 200.0, 1e30])
    found = swiglu(torch.cat([gate, torch.ones(12)])[None])[0]
    torch.testing.assert_close(found, F.silu(gate), rtol=1e-6, atol=1e-8)
    dgate = gated_backward(torch.cat([gate, torch.ones(12)])[None], torch.ones(1, 12))[0][0, :12]
    torch.testing.assert_close(
        dgate, torch.sigmoid(gate) * (1 + gate * (1 - torch.sigmoid(gate))), rtol=1e-6, atol=1e-6
    )


@here
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 9])
def test_what_is_not_finite_stays_so_and_in_its_row(value: float, dtype: torch.dtype, at: int) -> None:
    x = draw(0, 3, 10).to(dtype)
    x[1, at] = value
    weight, dy = torch.ones(10, dtype=dtype), draw(1, 3, 10).to(dtype)
    into, gate_up = torch.zeros_like(x), torch.cat([x, torch.ones_like(x)], 1)
    rms_norm_backward(dy, x, weight, EPS, into)
    back, act = gated_backward(gate_up, dy)
    for found in (rms_norm(x, weight, EPS), into, swiglu(gate_up), back, act, add_rms_norm(x.clone(), dy, weight, EPS)):
        assert torch.isfinite(found[[0, 2]]).all()
    for found in (rms_norm(x, weight, EPS), into, add_rms_norm(x.clone(), dy, weight, EPS)):
        assert not torch.isfinite(found[1]).all()
    if value != -float("inf"):  # silu(-inf) is NaN by the letter and 0 in the limit
        assert not torch.isfinite(act[1]).all()
        assert not torch.isfinite(swiglu(gate_up)[1]).all()


@here
def test_autograd_falls_to_plain_operations() -> None:
    x = torch.randn(2, 8, requires_grad=True)
    rms_norm(x, torch.ones(8), EPS).sum().backward()
    assert x.grad is not None
