"""Label errors by confident learning (Northcutt, Jiang and Chuang 2021): which given labels the rest of the data doubt.

What is found is a queue for people, never a reason to drop rows: much of it is right as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adapterhub.errors import UsageError

# Rows compared at once for near duplicates: 1,024 by 100,000 cosines in float32 are 400 MB.
_BLOCK = 1024


@dataclass(frozen=True)
class Suspect:
    """A row whose label is doubted: indices of the row, its label and the better one.

    `score` is the probability of the suggested label less that of the given one, out of fold.
    """

    row: int
    given: int
    suggested: int
    score: float


@dataclass(frozen=True)
class Twins:
    """Two rows that say nearly the same, `first` the earlier one, and have different labels."""

    first: int
    second: int
    cosine: float


def noise(probabilities: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return float64 [classes, classes]: how many rows labelled i are estimated to be of class j.

    `probabilities` [rows, classes] are out of fold, `given` [rows] are label indices. A row counts for the likeliest of
    the classes that it reaches the threshold of: the mean probability of class j over the rows labelled j. Counts are
    scaled so that each row of the matrix sums to the number of rows with that label, as in the paper.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(given, minlength=classes)
    thresholds = np.full(classes, np.inf)
    for label in np.flatnonzero(counts):
        # Not below chance: of a label with one row no head knows anything, and every unsure row would count for it.
        thresholds[label] = max(probabilities[given == label, label].mean(), 1 / classes)
    # A hair below, or rounding keeps rows that lie on the threshold (all of them, where all are equal) from counting.
    reached = probabilities >= thresholds - 1e-12
    sure = reached.any(axis=1)
    found = np.where(reached, probabilities, -1.0).argmax(axis=1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (given[sure], found[sure]), 1.0)
    silent = joint.sum(axis=1) == 0  # nobody is sure of any row with this label: no errors can be counted
    joint[silent, silent] = 1.0
    scaled: np.ndarray = joint / joint.sum(axis=1, keepdims=True) * counts[:, None]
    return scaled


def find_suspects(probabilities: np.ndarray, given: np.ndarray) -> list[Suspect]:
    """Return the rows to look at, the most doubtful first: as many as `noise` estimates to be wrong, by margin.

    Never a row whose own label is the likeliest. Raises UsageError for arrays that do not belong together.
    """
    rows = len(given)
    if probabilities.ndim != 2 or probabilities.shape[0] != rows or probabilities.shape[1] < 2:
        raise UsageError(
            f"the probabilities have shape {probabilities.shape}; expected one row for each of {rows} labels, "
            "and two classes at least"
        )
    margins, others = doubts(probabilities, given)
    estimated = noise(probabilities, given)
    count = round(estimated.sum() - np.trace(estimated))
    order = np.argsort(-margins, kind="stable")[:count]
    return [
        Suspect(int(row), int(given[row]), int(others[row]), float(margins[row])) for row in order if margins[row] > 0
    ]


def doubts(probabilities: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the likeliest other label's probability less the given one's, and which label that is."""
    rows = np.arange(len(given))
    others = probabilities.copy()
    others[rows, given] = -1.0
    best = others.argmax(axis=1)
    margins: np.ndarray = probabilities[rows, best] - probabilities[rows, given]
    return margins, best


def find_twins(features: np.ndarray, given: np.ndarray, least: float) -> list[Twins]:
    """Return pairs of rows with different labels whose features [rows, dim] have a cosine of `least` or more.

    Of each row only the nearest such partner, so a text that is there a thousand times makes no million pairs. The
    features are centred first: those of decoders all point one way. The most alike come first.
    """
    vectors = np.asarray(features, dtype=np.float32)
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = {
        (min(row, other), max(row, other)): cosine
        for row, other, cosine in _nearest_of_other_label(vectors, given)
        if cosine >= least
    }
    pairs = [Twins(first, second, cosine) for (first, second), cosine in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.cosine, pair.first, pair.second))


def _nearest_of_other_label(vectors: np.ndarray, given: np.ndarray) -> Iterator[tuple[int, int, float]]:
    for start in range(0, len(vectors), _BLOCK):
        cosines = vectors[start : start + _BLOCK] @ vectors.T
        cosines[given[start : start + _BLOCK, None] == given[None, :]] = -2.0
        best = cosines.argmax(axis=1)
        for offset, other in enumerate(best):
            yield start + offset, int(other), float(cosines[offset, other])
