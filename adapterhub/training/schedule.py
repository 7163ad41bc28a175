"""How many steps a training takes, and the learning rate at each."""

from __future__ import annotations

import math
from typing import Literal


def total_steps(rows: int, batch_size: int, *, epochs: float | None, steps: int | None) -> int:
    """Return the number of optimiser steps: `steps` where given, else what `epochs` (may be a fraction) comes to."""
    if steps is not None:
        return steps
    assert epochs is not None, "a recipe gives epochs or steps"
    # 1.1 * 10 is a little more than 11 in floating point.
    return max(1, math.ceil(epochs * steps_per_epoch(rows, batch_size) - 1e-9))


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches that hold all rows once."""
    return math.ceil(rows / batch_size)


def multiplier(step: int, total: int, warmup: float, schedule: Literal["linear", "cosine", "constant"]) -> float:
    """Return the factor on the peak learning rate at `step` (from 0) of `total`.

    It rises over the first `warmup` fraction of the steps, then falls to zero after the last (or stays, if constant).
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    left = max(0, total - step) / max(1, total - rising)
    return left if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
