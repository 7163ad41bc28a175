"""What serving will keep the threads busy with, to find out how many are best."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterhub.engine.frozen import FrozenLinear

# Beyond this width one product is long enough to tell, and several would take seconds.
_ROWS, _WIDEST, _CHAIN_BYTES, _MOST_PAIRS = 16, 4096, 32 << 20, 16


def decode_chain(hidden_size: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return a pass through products of a few rows with matrices of the base's width, as in a decode step."""
    width = min(hidden_size, _WIDEST)
    pairs = max(1, min(_MOST_PAIRS, _CHAIN_BYTES // (4 * width * width * dtype.itemsize)))

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.full((rows, columns), 1 / columns, dtype=torch.bfloat16).to(dtype)  # as a base's weights are

    weights = [(FrozenLinear(matrix(2 * width, width)), FrozenLinear(matrix(width, 2 * width))) for _ in range(pairs)]
    start = matrix(_ROWS, width)

    def run() -> Tensor:
        rows = start
        for up, down in weights:
            rows = rows + down(F.silu(up(rows)))
        return rows

    return run
