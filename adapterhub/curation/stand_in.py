"""Heads in an adapter's place: what is wrong on test rows after fitting a head on some of the training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapterhub.errors import DataError
from adapterhub.heads import fit_head

from .early import moments

_STRENGTH = 0.01


@dataclass(frozen=True)
class StandIn:
    """Features float32 [rows, dim] and label indices [rows] of training and of test rows, both scaled alike."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    gold: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray, labels: np.ndarray, test: np.ndarray, gold: np.ndarray) -> StandIn:
        """Scale features by what the training rows are like."""
        mean, spread = moments(train)
        return cls((train - mean) / spread, labels, (test - mean) / spread, gold)

    def wrong(self, rows: np.ndarray) -> np.ndarray:
        """Return bool [test rows]: what a head that was fitted on these training rows gets wrong.

        The order of the rows does not matter. Raises DataError where they have one label only.
        """
        rows = np.sort(rows)
        if len(np.unique(self.labels[rows])) < 2:
            raise DataError(
                f"{len(rows)} of the training rows have one label only; a head needs two, so take more rows"
            )
        found: np.ndarray = (
            fit_head(self.train[rows], self.labels[rows], strength=_STRENGTH).predict(self.test) != self.gold
        )
        return found
