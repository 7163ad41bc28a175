"""LoRA while it learns: a stack's updates for a span of rows, forward and backward, without autograd's plumbing.

For rows x [rows, in], A [ranks, in] of all layers of a stack one below the other, B_i [out_i, rank_i] of each and its
scaling s_i:

    z = x A^T,  y_i += s_i z_i B_i^T

and, given dy,

    dz_i = s_i dy_i B_i,  dx += dz A,  dA += dz^T x,  dB_i += s_i dy_i^T z_i

Only z is kept between the two, which is as narrow as the ranks. `add_lora_by_autograd` is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Member:
    """One layer of a stack that has a pair: rows [low, high) of A, columns [first, last) of the stack's output.

    `b` is [last - first, high - low]; `grad_b`, of the same shape, is None where the pair does not learn.
    """

    low: int
    high: int
    first: int
    last: int
    b: Tensor
    grad_b: Tensor | None


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
        """Add the update of `x` [rows, in] to `y` [rows, sum of outs] in place; return scaled z [rows, ranks]."""
        z = torch.mm(x, self.a.T).mul_(self.scale)
        for member in self.members:
            y[:, member.first : member.last].addmm_(z[:, member.low : member.high], member.b.T)
        return z

    def back(self, dy: Tensor, z: Tensor) -> Tensor:
        """Add to the gradients of B for `dy` [rows, sum of outs]; return the gradient of x A^T [rows, ranks].

        That is what `input_gradient` and `add_gradient_of_a` take.
        """
        dz = torch.empty_like(z)
        for member in self.members:
            part = dy[:, member.first : member.last]
            torch.mm(part, member.b, out=dz[:, member.low : member.high])
            if member.grad_b is not None:
                member.grad_b.addmm_(part.T, z[:, member.low : member.high])
        return dz.mul_(self.scale)

    def input_gradient(self, dx: Tensor, dz: Tensor) -> None:
        """Add the gradient of x to `dx` [rows, in], in place."""
        dx.addmm_(dz, self.a)

    def add_gradient_of_a(self, dz: Tensor, x: Tensor) -> None:
        """Add to the gradient of A."""
        if self.grad_a is not None:
            self.grad_a.addmm_(dz.T, x)


def add_lora_by_autograd(y: Tensor, x: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float, int]]) -> Tensor:
    """Return `y` plus the updates of `x`, one pair after another: the reference, whose gradients are autograd's.

    Each pair is A [rank, in], B [out, rank], its scaling, and the first of its columns in `y`.
    """
    for a, b, scaling, first in pairs:
        update = scaling * (x @ a.T) @ b.T
        y = y + torch.nn.functional.pad(update, (first, y.shape[1] - first - b.shape[0]))
    return y
