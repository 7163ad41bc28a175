"""What training asks of the machine: threads that fit it, and how much memory it took."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from adapterhub.native.threads import choose_threads

# The shape of the work that is timed: rows of a packed line, layers, and the widest base that is told from.
_ROWS, _LAYERS, _WIDEST = 256, 4, 2048


def fit_threads(width: int, dtype: torch.dtype, device: torch.device) -> str:
    """Compute with as many threads as are fastest now, and return why that many.

    More threads than free cores collapse throughput many times over, so a stretch of work like a training step's, for
    a base of this width, is timed. A number set by OMP_NUM_THREADS is the user's choice and stays.
    """
    choice = choose_threads(None, lambda: step_chain(width, dtype), device)
    torch.set_num_threads(choice.count)
    return choice.reason


def step_chain(width: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return products and element-wise work as in a training step: long stretches, and short ones between them."""
    width = min(width, _WIDEST)
    x, up = torch.ones(_ROWS, width, dtype=dtype), torch.full((4 * width, width), 1 / width, dtype=dtype)

    def run() -> Tensor:
        y = x
        for _ in range(_LAYERS):
            y = torch.nn.functional.silu(y @ up.T) @ up
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y

    return run


def peak_memory_bytes() -> int:
    """Return the most memory this process has held resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS
