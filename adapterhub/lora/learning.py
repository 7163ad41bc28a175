"""LoRA while it learns: a stack's updates for a span of rows, forward and backward, without autograd's plumbing.

For rows x [rows, in], A [ranks, in] of all layers of a stack one below the other, B_i [out_i, rank_i] of each and its
scaling s_i:

    z = x A^T,  y_i += s_i z_i B_i^T

and, given dy,

    dz_i = s_i dy_i B_i,  dx += dz A,  dA += dz^T x,  dB_i += s_i dy_i^T z_i

Only z is kept between the two, which is as narrow as the ranks. B, z and their gradients lie transposed: a product
whose result is a few long rows runs up to five times faster than one whose result is a few columns (MKL, measured).
`add_lora_by_autograd` is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Member:
    """One layer of a stack that has a pair: rows [low, high) of A, columns [first, last) of the stack's output.

    `bt` is B transposed, [rank, out]; its gradient `grad_bt` is None where the pair does not learn.
    """

    low: int
    high: int
    first: int
    last: int
    bt: Tensor
    grad_bt: Tensor | None


@dataclass(frozen=True)
class StackPairs:
    """An adapter's pairs on a stack: `a` [ranks, in], `scale` [ranks] each layer's scaling, once a row of A.

    `grad_a` is None where the pairs do not learn; gradients are added to what is there.
    """

    a: Tensor
    scale: Tensor
    members: tuple[Member, ...]
    grad_a: Tensor | None

    @property
    def learns(self) -> bool:
        """Whether the pairs have gradients."""
        return self.grad_a is not None

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the update of `x` [rows, in] to `y` [rows, sum of outs] in place; return scaled z^T [ranks, rows]."""
        zt = torch.mm(self.a, x.T).mul_(self.scale[:, None])
        for member in self.members:
            y[:, member.first : member.last].addmm_(zt[member.low : member.high].T, member.bt)
        return zt

    def back(self, dy: Tensor, zt: Tensor) -> Tensor:
        """Add to the gradients of B for `dy` [rows, sum of outs]; return the gradient of A x^T [ranks, rows].

        That is what `input_gradient` and `add_gradient_of_a` take.
        """
        dzt = torch.empty_like(zt)
        for member in self.members:
            part = dy[:, member.first : member.last]
            torch.mm(member.bt, part.T, out=dzt[member.low : member.high])
            if member.grad_bt is not None:
                member.grad_bt.addmm_(zt[member.low : member.high], part)
        return dzt.mul_(self.scale[:, None])

    def input_gradient(self, dx: Tensor, dzt: Tensor) -> None:
        """Add the gradient of x to `dx` [rows, in], in place."""
        dx.addmm_(dzt.T, self.a)

    def add_gradient_of_a(self, dzt: Tensor, x: Tensor) -> None:
        """Add to the gradient of A."""
        if self.grad_a is not None:
            self.grad_a.addmm_(dzt, x)


def add_lora_by_autograd(y: Tensor, x: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float, int]]) -> Tensor:
    """Return `y` plus the updates of `x`, one pair after another: the reference, whose gradients are autograd's.

    Each pair is A [rank, in], B [out, rank], its scaling, and the first of its columns in `y`.
    """
    for a, b, scaling, first in pairs:
        update = scaling * (x @ a.T) @ b.T
        y = y + torch.nn.functional.pad(update, (first, y.shape[1] - first - b.shape[0]))
    return y
