"""Coverage of concepts: how often each label or field occurs in training rows, and how accuracy follows the count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterhub.errors import DataError
from adapterhub.metrics import by_field

from .ladder import Ladder
from .learning_curve import LEAST_SIZES, Curve, fit_curves

# A label is rare where it has less than this part of the rows that labels need.
_RARE = 0.5


@dataclass(frozen=True)
class LabelCount:
    """A label or field: its training rows, those that measure it, and its accuracy or F1 (None where none does)."""

    label: str
    train: int
    measured: int
    accuracy: float | None

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return dict(vars(self))


@dataclass(frozen=True)
class Coverage:
    """Labels, or fields of JSON answers, from the rarest on, and how accuracy follows the count over all and all sizes.

    `per_doubling` is by how much accuracy rises where a label has twice the rows, by a straight line in the logarithm
    of the count; `correlation` is that of the two, None where nothing varies. `needed` is how many rows a label takes
    for `target` by the curve through all of them, None where the curve does not get there, or where counts are too few
    or too alike for one, and it is not `fitted`. `usual` is how many the median label has.
    """

    labels: tuple[LabelCount, ...]
    target: float
    per_doubling: float | None
    correlation: float | None
    needed: int | None
    usual: int
    fitted: bool

    def rare(self) -> list[tuple[LabelCount, int]]:
        """Return labels that have less than half of the rows needed, each with how many it lacks.

        Where it is not known what is needed, of those that the median label has.
        """
        goal = self.usual if self.needed is None else self.needed
        return [(each, goal - each.train) for each in self.labels if each.train < _RARE * goal]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        rare = [{"label": each.label, "train": each.train, "lacks": lacks} for each, lacks in self.rare()]
        return {
            "labels": [each.to_record() for each in self.labels],
            "target": self.target,
            "per_doubling": self.per_doubling,
            "correlation": self.correlation,
            "needed": self.needed,
            "usual": self.usual,
            "fitted": self.fitted,
            "rare": rare,
        }


def cover(
    names: Sequence[str],
    counts: np.ndarray,
    gold: np.ndarray,
    ladder: Ladder,
    target: float | None = None,
    *,
    have: np.ndarray | None = None,
) -> Coverage:
    """Return the coverage of labels; `target` None is the accuracy over all labels on the largest size.

    `counts` int [sizes, labels]: how many training rows of each label there are on each rung, on average over seeds.
    `gold` int [rows]: the label of each test row. `have` int [labels]: how many rows there are of each, where those are
    more than the largest rung's.
    """
    measured = np.bincount(gold, minlength=len(names))
    errors = np.full(counts.shape, np.nan)
    for label in np.flatnonzero(measured):
        errors[:, label] = ladder.rows(gold == label).errors
    goal = 1 - float(ladder.errors[-1]) if target is None else target
    return _covered(names, counts, errors, measured, goal, counts[-1] if have is None else have)


def cover_fields(
    train: Sequence[str], gold: Sequence[str], answers: Sequence[str], target: float | None = None
) -> Coverage:
    """Return the coverage of the fields of answers that are JSON objects; `target` None is the F1 over all fields.

    `train` are completions that were learnt from, `gold` those of held-out rows, and `answers` what was written there.
    A field's F1 is over its (field, value) pairs, and it is measured by as many as the gold ones. Raises DataError
    where no completion to learn from has a field.
    """
    scores = by_field(gold, answers)
    occurs = Counter(name for name, (_, count, _) in _each(train) for _ in range(count))
    if not occurs:
        raise DataError("no completion of the training rows is a JSON object with fields; coverage is of such fields")
    # What is written and never right to write is no concept of the task.
    names = sorted(occurs.keys() | {name for name, (_, count, _) in scores.items() if count})
    found = np.array([scores.get(name, (0, 0, 0)) for name in names], float)
    measured = found[:, 1].astype(int)
    with np.errstate(invalid="ignore"):
        errors = np.where(measured > 0, 1 - 2 * found[:, 0] / found[:, 1:].sum(axis=1), np.nan)
    totals = np.array([*scores.values()], float).reshape(-1, 3).sum(axis=0)
    goal = 2 * totals[0] / max(1.0, totals[1] + totals[2]) if target is None else target
    counts = np.array([[occurs[name] for name in names]], float)
    return _covered(names, counts, errors[None], measured, float(goal), counts[0])


def _each(completions: Sequence[str]) -> Iterable[tuple[str, tuple[int, int, int]]]:
    """Yield every completion's fields."""
    return (pair for text in completions for pair in by_field([text], [text]).items())


def _covered(
    names: Sequence[str],
    counts: np.ndarray,
    errors: np.ndarray,
    measured: np.ndarray,
    goal: float,
    have: np.ndarray,
) -> Coverage:
    """Return the coverage of names, by counts and errors [sizes, names], how many rows measure each, and have it."""
    found = [
        LabelCount(name, round(float(have[i])), int(measured[i]), None if not measured[i] else float(1 - errors[-1, i]))
        for i, name in enumerate(names)
    ]
    found.sort(key=lambda each: (each.train, each.label))
    known = (counts > 0) & ~np.isnan(errors)
    at, wrong, weight = counts[known], errors[known], np.broadcast_to(measured, counts.shape)[known]
    slope, correlation = _line(np.log2(at), 1 - wrong, weight)
    curve = _curve(at, wrong, weight)
    needed = None if curve is None else _rows_for(1 - goal, curve)
    usual = round(float(np.median(have)))
    return Coverage(tuple(found), goal, slope, correlation, needed, usual, curve is not None)


def _line(at: np.ndarray, value: np.ndarray, weight: np.ndarray) -> tuple[float | None, float | None]:
    """Return slope and correlation of values against places, weighted; None where one does not vary, or of two places.

    Through two points there is always a line.
    """
    if len(np.unique(at)) < LEAST_SIZES:
        return None, None
    left, up = at - np.average(at, weights=weight), value - np.average(value, weights=weight)
    width, height = float(weight @ left**2), float(weight @ up**2)
    both = float(weight @ (left * up))
    if width < 1e-12:
        return None, None
    return both / width, both / float(np.sqrt(width * height)) if height > 1e-12 else None


def _curve(at: np.ndarray, wrong: np.ndarray, weight: np.ndarray) -> Curve | None:
    """Return the curve through means of counts, None where there are too few different ones.

    Counts alike within a factor of the root of two are taken together, since one label's accuracy says little.
    """
    bins = np.round(2 * np.log2(at)).astype(int) if len(at) else np.empty(0, int)
    groups = [bins == each for each in np.unique(bins)]
    if len(groups) < LEAST_SIZES:
        return None
    sizes = np.array([np.average(at[each], weights=weight[each]) for each in groups])
    errors = np.array([[np.average(wrong[each], weights=weight[each]) for each in groups]])
    weights = np.array([weight[each].sum() for each in groups], dtype=float)
    return fit_curves(sizes, errors, weights).one()


def _rows_for(error: float, curve: Curve) -> int | None:
    """Return how many rows a label takes until its error is no more than this; None beyond what the curve speaks of."""
    places = np.arange(1, int(curve.limit) + 1)
    return next((int(rows) for rows in places if curve.at(float(rows)) <= error), None)
