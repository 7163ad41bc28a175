"""Root mean square normalisation (Zhang and Sennrich 2019) with a frozen weight, by the kernels where there are any."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import suited
from .library import native
from .plain import plain_rms_norm, plain_rms_norm_backward


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) by rows, for `x` [rows, width] and `weight` [width]."""
    kernels = native()
    if kernels is None or not suited(x, weight):
        return plain_rms_norm(x, weight, eps)
    y = torch.empty_like(x)
    kernels.rms_norm(x, None, weight, eps, y)
    return y


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `delta` to `x`, in place, and return the sum normalised, in one pass: what stands between two layers."""
    kernels = native()
    if kernels is None or not suited(x, delta, weight):
        return plain_rms_norm(x.add_(delta), weight, eps)
    y = torch.empty_like(x)
    kernels.rms_norm(x, delta, weight, eps, y)
    return y


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, into: Tensor) -> None:
    """Add the gradient with respect to `x`, from `dy` [rows, width], to `into`: the residual stream's gradient."""
    kernels = native()
    if kernels is None or not suited(dy, x, weight, into):
        plain_rms_norm_backward(dy, x, weight, eps, into)
    else:
        kernels.rms_norm_backward(dy, x, weight, eps, into)
