"""Products with a frozen matrix whose numbers are all bfloat16, as most bases are stored, by rows of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import Kernels
from .library import native
from .panels import pack_panels, unpack_panels


class PackedProduct:
    """y = x W^T for W [out, in], kept in bfloat16 and multiplied in float32: half the bytes, and nothing is rounded.

    It is what `x @ W.T` gives up to the order of sums. `pack_product` makes it.
    """

    def __init__(self, kernels: Kernels, panels: Tensor, shape: tuple[int, int]) -> None:
        self._kernels, self._panels, self._shape = kernels, panels, shape

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return self._panels.numel() * self._panels.element_size()

    @property
    def weight(self) -> Tensor:
        """W [out, in] in float32, made anew."""
        return unpack_panels(self._panels, *self._shape)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return float32 [rows, out] for float32 `x` [rows, in] on the CPU, in `out` if given; no autograd."""
        y = x.new_empty(x.shape[0], self._shape[0]) if out is None else out
        self._kernels.product(x.contiguous(), self._panels, y)
        return y


def pack_product(weight: Tensor) -> PackedProduct | None:
    """Return the product with `weight` [out, in], or None: no kernels here, not float32, or not all bfloat16."""
    kernels = native()
    if kernels is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    panels = pack_panels(weight, kernels.panel_rows)
    return None if panels is None else PackedProduct(kernels, panels, (weight.shape[0], weight.shape[1]))
