"""Packed products are the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adapterhub.engine import frozen
from adapterhub.engine.frozen import FrozenLinear
from adapterhub.native.library import native
from adapterhub.native.product import PackedProduct


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize("shape", [(48, 32), (7, 33), (1, 1), (300, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_any_number_of_rows(dtype: torch.dtype, tolerance: float, shape: tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    added = torch.randn(shape[0], generator=generator).to(dtype) if bias else None
    layer = FrozenLinear(weight.clone(), None if added is None else added.clone())
    with torch.inference_mode():
        for rows in (1, 2, 3, 16, 31, 32, 33, 200):
            x = torch.randn(rows, shape[1], generator=generator).to(dtype)
            expected = F.linear(x.double(), weight.double(), None if added is None else added.double())
            error = (layer(x).double() - expected).abs().max() / expected.abs().max()
            assert float(error) < tolerance, rows


def test_a_matrix_of_bfloat16_numbers_is_kept_as_such() -> None:
    weight = torch.randn(40, 33, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    layer = FrozenLinear(weight)
    assert isinstance(layer.product, PackedProduct) == (native() is not None)
    assert not isinstance(FrozenLinear(weight + 1e-6).product, PackedProduct)
    for rows in (1, 2, 3, 16, 31, 32, 33, 200):
        x = torch.randn(rows, 33, generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_the_packed_form_is_what_is_used_here() -> None:
    if torch.backends.mkl.is_available():
        assert frozen._agreeing(frozen._packed(torch.randn(8, 8)), torch.randn(8, 8)) is None  # another matrix: noticed
        weight = torch.randn(8, 8)
        assert frozen._agreeing(frozen._packed(weight), weight) is not None
        assert "_mkl" in FrozenLinear(weight).product.__qualname__
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert "_onednn" in FrozenLinear(torch.randn(8, 8, dtype=torch.bfloat16)).product.__qualname__
    assert frozen._packed(torch.randn(8, 8, dtype=torch.float64)) is None


def test_the_plain_weight_may_go() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)
    expected = torch.ones(2, 8) @ weight.T
    layer = FrozenLinear(weight)
    weight.data = weight.data.new_empty(0)
    torch.testing.assert_close(layer(torch.ones(2, 8)), expected)


def test_squares_are_the_rows_squared_norms() -> None:
    torch.testing.assert_close(FrozenLinear(torch.tensor([[3.0, 4.0], [1.0, 0.0]])).squares, torch.tensor([25.0, 1.0]))
