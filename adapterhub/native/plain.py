"""What the other kernels compute, in plain PyTorch operations: any device, any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return y [rows, width]; a row is rounded to its dtype before it meets the weight, as in transformers."""
    return torch.mul(x, _scale(x, eps)).to(x.dtype).mul_(weight)


def plain_rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, into: Tensor) -> None:
    """Add the gradient with respect to `x` to `into`."""
    wide, weighted = x.to(_wide(x)), dy.to(_wide(x)) * weight
    scale = _scale(wide, eps)
    shared = (weighted * wide).mean(-1, keepdim=True) * scale.pow(3)
    into.copy_(into + (weighted * scale - wide * shared))


def plain_swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up [rows, width]."""
    gate, up = gate_up.to(_wide(gate_up)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def plain_swiglu_backward(gate_up: Tensor, dact: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient with respect to `gate_up`, and the activations anew."""
    gate, up = gate_up.to(_wide(gate_up)).chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    d = dact.to(gate.dtype)
    both = torch.cat([d * up * (sigmoid + silu * (1 - sigmoid)), d * silu], dim=-1)
    return both.to(gate_up.dtype), (silu * up).to(gate_up.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scale(x: Tensor, eps: float) -> Tensor:
    # Two passes over the states with the product that follows, where a mean of squares takes three.
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x))
    return (norm * norm / x.shape[-1] + eps).rsqrt()
