"""Products with matrices in bfloat16 are those with the same numbers in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.native import product
from adapterhub.native.library import native
from adapterhub.native.product import pack_product

here = pytest.mark.skipif(native() is None, reason="no kernels can be built here")


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).bfloat16().float()


@here
@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.sampled_from([1, 2, 7, 64, 577, 1200]), st.sampled_from([1, 15, 16, 17, 33, 64, 129]))
def test_any_shape(rows: int, depth: int, columns: int) -> None:
    weight, x = matrix(columns, depth), torch.randn(rows, depth, generator=torch.Generator().manual_seed(0))
    packed = pack_product(weight)
    assert packed is not None
    assert packed.bytes < 2 * (columns + 32) * (depth + 1)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(packed(x).double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    # Rows that lie otherwise, and rows among others, give the same.
    assert torch.equal(packed(x.T.contiguous().T), packed(x))
    assert torch.equal(packed.weight, weight)


@here
def test_a_large_matrix_is_packed_in_pieces() -> None:
    weight = matrix(9001, 6)
    packed = pack_product(weight)
    assert packed is not None
    torch.testing.assert_close(packed(torch.eye(6)), weight.T)
    assert torch.equal(packed.weight, weight)


@here
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    packed, x = pack_product(matrix(600, 300)), torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    assert packed is not None
    expected, before = packed(x), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(packed(x), expected)
    finally:
        torch.set_num_threads(before)


@here
def test_what_is_not_finite_stays_in_its_row_or_column() -> None:
    weight, x = matrix(20, 9), torch.ones(4, 9)
    x[1, 8], x[2, 3], weight[7, 2] = float("nan"), float("inf"), float("-inf")
    packed = pack_product(weight)
    assert packed is not None
    finite = torch.isfinite(packed(x))
    assert not finite[[1, 2]].any()
    assert not finite[:, 7].any()
    assert finite[[0, 3]].sum() == 2 * 19


def test_what_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack_product(torch.full((3, 3), 1.001)) is None
    assert pack_product(torch.full((3, 3), float("nan"))) is None
    assert pack_product(torch.ones(3, 3, dtype=torch.float64)) is None
    assert pack_product(torch.ones(3, 3, device="meta")) is None
    monkeypatch.setattr(product, "native", lambda: None)
    assert pack_product(torch.ones(3, 3)) is None
