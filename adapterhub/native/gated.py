"""The gated activation silu(gate) * up (SwiGLU, Shazeer 2020), by the kernels where there are any."""

from __future__ import annotations

from torch import Tensor

from .kernels import suited
from .library import native
from .plain import plain_swiglu, plain_swiglu_backward


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up [rows, width] for `gate_up` [rows, 2 * width], gate and up side by side."""
    kernels = native()
    if kernels is None or not suited(gate_up):
        return plain_swiglu(gate_up)
    act = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    kernels.swiglu(gate_up, act)
    return act


def swiglu_backward(gate_up: Tensor, dact: Tensor) -> None:
    """Turn `gate_up` into its own gradient, and its activations' gradient `dact` [rows, width] into the activations."""
    kernels = native()
    if kernels is None or not suited(gate_up, dact):
        gradient, act = plain_swiglu_backward(gate_up, dact)
        gate_up.copy_(gradient)
        dact.copy_(act)
    else:
        kernels.swiglu_backward(gate_up, dact, gate_up, dact)
