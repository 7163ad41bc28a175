"""Ladders drawn from a known curve: what test rows and seeds do to the errors that are measured."""

from __future__ import annotations

import numpy as np

from adapterhub.curation.ladder import Ladder

SIZES = (25, 50, 100, 200, 400)


def truth(rows: float, a: float = 2.0, b: float = 0.5, c: float = 0.05) -> float:
    return float(a * rows**-b + c)


def ladder(
    seed: int = 0, *, rows: int = 300, seeds: int = 5, sizes: tuple[int, ...] = SIZES, c: float = 0.05
) -> Ladder:
    """Return outcomes of rows that are hard or easy on every rung, after trainings that were lucky or not."""
    draw = np.random.default_rng(seed)
    hardness = draw.uniform(size=rows)
    wrong = np.empty((len(sizes), seeds, rows), np.float32)
    for rung, size in enumerate(sizes):
        for each in range(seeds):
            rate = truth(size, c=c) * np.exp(draw.normal(0, 0.05))
            noise = draw.uniform(size=rows)
            wrong[rung, each] = np.where(draw.random(rows) < 0.6, hardness, noise) < rate
    return Ladder(sizes, wrong)
