"""A frozen linear layer in the layout that this machine multiplies fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterhub.native.product import pack_product

# Rows the packed layouts are tuned for: a full decode step.
_TYPICAL_ROWS = 32
Product = Callable[[Tensor], Tensor]


class FrozenLinear:
    """y = x W^T + bias for `weight` [out, in], packed once.

    In float32 that is our own product where all numbers of the weight are bfloat16, as those of most bases are: half
    the memory, twice as fast as MKL's at 16 rows and no slower at 512 (AVX2, measured in turns). Else MKL (float32) and
    oneDNN (bfloat16) multiply few rows by a packed matrix up to 1.5 times faster than by a plain one, which they would
    pack anew each time. Where a layout is not there, or does not agree with the plain product here, the next one is
    used.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        weight = weight.detach()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        # What DoRA's norms need of the weight once only the packed form is left.
        self.squares = weight.to(torch.promote_types(weight.dtype, torch.float32)).pow(2).sum(dim=1)
        self.product = _best(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Return [rows, out] for `x` [rows, in]."""
        y = self.product(x)
        return y if self.bias is None else y.add_(self.bias)


def _plain(weight: Tensor) -> Product:
    return lambda x: F.linear(x, weight)


def _best(weight: Tensor) -> Product:
    return _agreeing(pack_product(weight), weight) or _agreeing(_packed(weight), weight) or _plain(weight)


def _packed(weight: Tensor) -> Product | None:
    if weight.device.type != "cpu":
        return None
    if weight.dtype == torch.float32 and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return _mkl(weight)
    if weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return _onednn(weight)
    return None


def _mkl(weight: Tensor) -> Product:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
    # The operator reads the plain weight only where the number of rows is not the one it is told; its shape is enough.
    shape = torch.zeros(1).expand(weight.shape)

    def product(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkl._mkl_linear(x, packed, shape, None, x.shape[0])
        return y

    return product


def _onednn(weight: Tensor) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)

    def product(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return y

    return product


def _agreeing(product: Product | None, weight: Tensor) -> Product | None:
    """Return `product` if it gives what the plain product gives, for one row and for many."""
    if product is None:
        return None
    generator = torch.Generator().manual_seed(0)
    allowed = 1e-4 if weight.dtype == torch.float32 else 0.02
    for rows in (1, _TYPICAL_ROWS + 5):
        x = torch.randn(rows, weight.shape[1], generator=generator).to(weight.dtype)
        expected = F.linear(x, weight).float()
        scale = float(expected.abs().max()) or 1.0
        if not torch.allclose(product(x).float(), expected, rtol=0, atol=allowed * scale):
            return None
    return product
