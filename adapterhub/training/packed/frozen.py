"""A stack of frozen layers, multiplied forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterhub.base.llama import StackWeights
from adapterhub.native.product import PackedProduct, pack_product


class FrozenStack:
    """y = x W^T + bias for W [sum of outs, in], and dx = dy W.

    Weights whose numbers are all bfloat16 are kept so, once for each direction, and multiplied in float32 by our own
    product where there is one: the same sums, as few bytes as one float32 copy, and no packing anew at each call. The
    other direction is made when it is first asked for, since a trunk has no backward.
    """

    def __init__(self, weights: StackWeights) -> None:
        self.bias, self.outs = weights.bias, weights.outs
        self.out_features, self.in_features = (int(size) for size in weights.weight.shape)
        self._packed: PackedProduct | None = pack_product(weights.weight)
        self._back: PackedProduct | None = None
        self._weight: Tensor | None = None if self._packed is not None else weights.weight

    def forward(self, x: Tensor, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Fill `y` [rows, sum of outs] for `x` [rows, in], `residual` added; return it."""
        if self._packed is not None:
            self._packed(x, y)
            if residual is not None:
                y.add_(residual)
        elif residual is not None:
            torch.addmm(residual, x, self.weight.T, out=y)
        else:
            torch.mm(x, self.weight.T, out=y)
        return y if self.bias is None else y.add_(self.bias)

    def backward(self, dy: Tensor, dx: Tensor) -> Tensor:
        """Fill `dx` [rows, in] for `dy` [rows, sum of outs]; return it."""
        if self._packed is not None and self._back is None:
            self._back = pack_product(self.weight.T.contiguous())
        return torch.mm(dy, self.weight, out=dx) if self._back is None else self._back(dy, dx)

    @property
    def weight(self) -> Tensor:
        """W [sum of outs, in], made anew where it is packed."""
        if self._weight is not None:
            return self._weight
        assert self._packed is not None
        return self._packed.weight

    def weight_of(self, index: int) -> Tensor:
        """Return the weight [out, in] of one layer of the stack."""
        first = sum(self.outs[:index])
        return self.weight[first : first + self.outs[index]]
