"""Scores of rows: how hard, how forgettable, how sure, how typical. In each, more means harder or less typical."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from adapterhub.errors import DataError, UsageError

from .clusters import cluster, directions, parts, picked
from .early import watch_heads
from .outlook import Outlook, look_out

# What each score is, for people.
SCORES: Mapping[str, str] = {
    "el2n": "length of the error of heads early in training, 0 to 1.41",
    "forgetting": "how often a head got the row right and later wrong; ten if it never did",
    "margin": "probability of the likeliest other label less that of its own, by heads that did not see the row",
    "loss": "minus the logarithm of its label's probability, by heads that did not see the row",
    "prototype": "1 less the cosine to the nearest of the centres of all rows; needs no labels",
}
# The one that is told of rows towards others, not among themselves.
INFLUENCE = "influence"
NEEDS_LABELS = frozenset(SCORES) - {"prototype"}


def check_scores(names: Collection[str]) -> None:
    """Raise UsageError for a score there is not; influence, which needs a target, is told of elsewhere."""
    if unknown := [name for name in names if name not in SCORES and name != INFLUENCE]:
        raise UsageError(f"there is no score {unknown[0]!r}; there are {', '.join((*SCORES, INFLUENCE))}")


def score_rows(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    wanted: Collection[str] = tuple(SCORES),
    *,
    outlook: Outlook | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the wanted scores, float32 [rows] each, NaN where a score needs a label and the row has none (-1).

    Features are float32 [rows, dim], labels int64 [rows]. `outlook` on the labelled rows is used where it is given.
    Raises UsageError for a score there is not, DataError for too few labelled rows or one class only.
    """
    check_scores(wanted)
    if INFLUENCE in wanted:
        raise UsageError("influence is told towards rows to be good at, not among the rows themselves")
    found = {name: np.full(len(labels), np.nan, np.float32) for name in wanted}
    rows = np.flatnonzero(labels >= 0)
    given = picked(features, rows)
    if NEEDS_LABELS & set(wanted) and not len(rows):
        raise DataError("no row has a label, which these scores need; ask for prototype, which needs none")
    if {"el2n", "forgetting"} & set(wanted):
        seen = watch_heads(given, labels[rows], classes, seed=seed)
        for name, values in (("el2n", seen.el2n), ("forgetting", seen.forgetting)):
            if name in found:
                found[name][rows] = values
    if {"margin", "loss"} & set(wanted):
        judged = outlook or look_out(given, labels[rows], classes, seed)
        for name, values in (("margin", judged.other - judged.own), ("loss", -np.log(np.maximum(judged.own, 1e-6)))):
            if name in found:
                found[name][rows] = values
    if "prototype" in found:
        found["prototype"] = prototype_distance(features, seed)
    return found


def prototype_distance(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return float32 [rows]: 1 - cosine to the nearest centroid (Sorscher et al. 2022); as many as the root of rows."""
    centres, nearest = cluster(features, max(1, math.isqrt(len(features))), seed)
    centres = directions(centres)
    found = np.empty(len(features), np.float32)
    for part in parts(len(features)):
        found[part] = 1.0 - (directions(features[part]) * centres[nearest[part]]).sum(axis=1)
    return found
