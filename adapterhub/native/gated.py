"""The gated activation silu(gate) * up (SwiGLU, Shazeer 2020), by the kernels where there are any."""

from __future__ import annotations

from torch import Tensor

from .kernels import suited
from .library import native
from .plain import plain_swiglu, plain_swiglu_backward


def swiglu(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """Return silu(gate) * up [rows, width] for `gate_up` [rows, 2 * width], gate and up side by side."""
    kernels = native()
    if kernels is None or not suited(gate_up, gate_up if out is None else out):
        found = plain_swiglu(gate_up)
        return found if out is None else out.copy_(found)
    act = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2) if out is None else out
    kernels.swiglu(gate_up, act)
    return act


def swiglu_backward(
    gate_up: Tensor, dact: Tensor, dgate_up: Tensor | None = None, act: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradient with respect to `gate_up`, from `dact` [rows, width], and the activations, computed anew.

    Both are filled where given. `dgate_up` may be `gate_up` itself, and `act` may be `dact`.
    """
    kernels = native()
    given = [each for each in (dgate_up, act) if each is not None]
    if kernels is None or not suited(gate_up, dact, *given):
        both, again = plain_swiglu_backward(gate_up, dact)
        return (both if dgate_up is None else dgate_up.copy_(both)), (again if act is None else act.copy_(again))
    dgate_up = gate_up.new_empty(gate_up.shape) if dgate_up is None else dgate_up
    act = dact.new_empty(dact.shape) if act is None else act
    kernels.swiglu_backward(gate_up, dact, dgate_up, act)
    return dgate_up, act
