"""What heads that did not see a row think of it: how likely its label is, which other is likeliest, what is suspect.

Suspect rows are those that confident learning counts as of another class (Northcutt et al. 2021): some other class is
as likely as it is for rows labelled so on average, and likelier than the row's own. In public data about half of such
rows are wrong: they are for looking at, and their share says whether the data is too noisy to trust hard rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapterhub.errors import DataError
from adapterhub.heads import out_of_fold, standardise

# Rows judged together: heads are fitted on shards of this size, so that memory does not grow with the rows.
_SHARD = 20_000
_FOLDS = 5


@dataclass(frozen=True)
class Outlook:
    """Over rows: float32 `own` and `other`, the probabilities of the label and of the likeliest other class.

    `rival` is the class that a row is suspected to be of, -1 where it is not; `accuracy` is the share of rows whose
    label is the likeliest.
    """

    own: np.ndarray
    other: np.ndarray
    rival: np.ndarray

    @property
    def suspect(self) -> np.ndarray:
        """Which rows another class is credible and likelier for, bool [rows]."""
        found: np.ndarray = self.rival >= 0
        return found

    @property
    def accuracy(self) -> float:
        """How often the label is the likeliest class."""
        return float((self.own >= self.other).mean())

    @property
    def noise(self) -> float:
        """The share of rows that are suspect."""
        return float(self.suspect.mean())


def look_out(features: np.ndarray, labels: np.ndarray, classes: int, seed: int = 0) -> Outlook:
    """Judge every row by heads fitted on others. Features float32 [rows, dim], label indices [rows].

    Raises DataError for fewer than ten rows or one class only.
    """
    if len(labels) < 2 * _FOLDS:
        raise DataError(
            f"{len(labels)} labelled rows are too few to judge each by the others; bring {2 * _FOLDS}, or ask for "
            "prototype alone"
        )
    own, other = np.empty(len(labels), np.float32), np.empty(len(labels), np.float32)
    rival = np.empty(len(labels), np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    for rows in np.array_split(order, -(-len(order) // _SHARD)):
        rows.sort()
        mine = labels[rows]
        found = out_of_fold(standardise(features[rows]), mine, classes, folds=_FOLDS, seed=seed)
        place = np.arange(len(rows))
        own[rows] = found[place, mine]
        rival[rows] = _rivals(found, mine)
        found[place, mine] = -1.0
        other[rows] = found.max(axis=1)
    return Outlook(own, other, rival)


def _rivals(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return int64 [rows]: the likeliest class that is credible and likelier than the label; -1 where there is none."""
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, own, minlength=probabilities.shape[1])
    # Of a class of one row no head saw any other: how likely it usually is where it is right is not known.
    usual = np.where(counts > 1, sums / np.maximum(counts, 1), np.inf)
    credible = np.where((probabilities >= usual) & (probabilities > own[:, None]), probabilities, 0.0)
    found: np.ndarray = np.where(credible.max(axis=1) > 0, credible.argmax(axis=1), -1)
    return found
