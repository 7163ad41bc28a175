"""Influence towards a target: how much a step on a row is a step on the target's rows too, by projected gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapterhub.errors import DataError
from adapterhub.heads import fit_head, standardise

from .clusters import directions, parts, picked
from .prune import Plan, Trial, chosen, keep_count
from .scores import INFLUENCE

_TRIALS = 3
# Rows of the pool that a trial looks at, so that it takes no more memory of a larger one.
_TRIAL_ROWS = 10_000


def influence(gradients: np.ndarray, target: np.ndarray, groups: Sequence[object] | None = None) -> np.ndarray:
    """Return float32 [rows], -1 to 1: the mean cosine of a row's gradient to those of the target's rows.

    With `groups` [target rows], that to the rows of the nearest group, its labels say, so that a row need not serve
    all of a target to be worth something (Xia et al., "LESS", ICML 2024). Gradients are float32 [rows, dim] of any
    length; a row without one (zero) has 0. Raises DataError for a target without rows.
    """
    if not len(target):
        raise DataError("the target has no rows with an answer; influence is told towards such rows")
    found = directions(target)
    names = [0] * len(found) if groups is None else list(groups)
    means = np.stack([found[[each == name for each in names]].mean(axis=0) for name in dict.fromkeys(names)])
    values = np.empty(len(gradients), np.float32)
    for part in parts(len(gradients)):
        values[part] = (directions(gradients[part]) @ means.T).max(axis=1)
    return values


def plan_by_influence(
    values: np.ndarray, labels: np.ndarray, share: float, *, floor: float = 0.0, trial: Trial | None = None
) -> Plan:
    """Keep the share of the rows with most influence; those without any (NaN: no answer) go first.

    Without a floor classes do not count: a pool's other tasks need not be there at all.
    Raises UsageError where the share is no part of the rows.
    """
    count = keep_count(share, len(values))
    classes = labels if floor > 0 else np.zeros_like(labels)
    stays = chosen(np.nan_to_num(values, nan=-np.inf), classes, count, floor=floor)
    return Plan(stays, INFLUENCE, trial, None, values)


def try_towards(
    stays: np.ndarray, features: np.ndarray, labels: np.ndarray, target: np.ndarray, gold: np.ndarray, seed: int = 0
) -> Trial | None:
    """Compare heads that learn from the rows that stay, from as many at random (three times) and from all of them.

    Features float32 [rows, dim] and label indices [rows], -1 for none, of the pool; the same of the target's rows,
    which the heads answer. Of a large pool 10,000 rows are drawn. None where there is nothing to tell apart: fewer than
    two labels among the target's rows, or among those that stay.
    """
    if len(labels) > _TRIAL_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(labels), _TRIAL_ROWS, replace=False))
        stays, features, labels = stays[rows], picked(features, rows), labels[rows]
    asked = np.flatnonzero(gold >= 0)
    both = standardise(np.concatenate([features, target[asked]]))
    count = int(stays.sum())
    draws = [np.random.default_rng([seed, trial]).permutation(len(labels))[:count] for trial in range(_TRIALS)]
    found: dict[str, list[float]] = {}
    for name, sets in (("random", draws), (INFLUENCE, [np.flatnonzero(stays)]), ("all", [np.arange(len(labels))])):
        for given in sets:
            rows = given[labels[given] >= 0]
            if len(np.unique(labels[rows])) < 2 or len(np.unique(gold[asked])) < 2:
                return None
            head = fit_head(both[rows], labels[rows])
            right = head.predict(both[len(features) :]) == gold[asked]
            found.setdefault(name, []).append(float(right.mean()))
    return Trial(found)
