"""What more data would bring: a curve through a ladder, how far to trust it, and how many rows a target needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adapterhub.errors import DataError, UsageError

from .ladder import Ladder
from .learning_curve import FORMS, LEAST_SIZES, REACH, Curve, Curves, Form, fit_curves

DRAWS = 1000
# The part of all resamples that an interval leaves out on each side.
_TAIL = 0.05

Answer = Literal["reached", "reachable", "perhaps", "not reachable by data alone"]


@dataclass(frozen=True)
class Point:
    """An error after training on `n` rows, with the interval that holds nine of ten resamples."""

    n: int
    error: float
    low: float
    high: float

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return dict(vars(self))


@dataclass(frozen=True)
class BackTest:
    """What the smaller sizes foretold for the largest one, and what was measured there.

    `misses` is by how much each form was wrong, above 0 where it foretold too high an error.
    """

    predicted: Point
    measured: float
    misses: Mapping[Form, float]

    @property
    def within(self) -> bool:
        """Whether what was measured lies in the interval."""
        return self.predicted.low <= self.measured <= self.predicted.high

    @property
    def best(self) -> Form:
        """The form that was least wrong."""
        return min(self.misses, key=lambda form: abs(self.misses[form]))

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        found = {"measured": self.measured, "within": self.within, "best": self.best, "miss": dict(self.misses)}
        return {**self.predicted.to_record(), **found}


@dataclass(frozen=True)
class Need:
    """How many rows an error takes.

    "reached" is with the rows there are; "reachable" where the curve meets it within four times the data, at `rows`;
    "perhaps" where only its interval does; "not reachable by data alone" where not even that does. `low` and `high` are
    where the two ends of the interval meet it. None is beyond four times the data, of which nothing is said.
    """

    error: float
    answer: Answer
    rows: int | None
    low: int | None
    high: int | None

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return dict(vars(self))


@dataclass(frozen=True)
class Forecast:
    """A ladder with a curve of each form through it, and one of the `power` form through every resample of it."""

    ladder: Ladder
    curves: Mapping[Form, Curve]
    resampled: Curves
    backtest: BackTest | None
    means: np.ndarray

    @classmethod
    def of(cls, ladder: Ladder, draws: int = DRAWS, seed: int = 0) -> Forecast:
        """Fit a ladder of three sizes at least; one of four is tested on its largest, within four times the next.

        Raises DataError for fewer sizes.
        """
        if len(ladder.sizes) < LEAST_SIZES:
            raise DataError(f"a forecast needs {LEAST_SIZES} sizes at least; these are {list(ladder.sizes)}")
        means = ladder.resample(draws, seed)
        # A size beyond the reach of those below it is not foretold by them.
        tested = len(ladder.sizes) > LEAST_SIZES and ladder.sizes[-1] <= REACH * ladder.sizes[-2]
        return cls(ladder, *_fitted(ladder, means), _back_test(ladder, means) if tested else None, means)

    @property
    def curve(self) -> Curve:
        """The curve that forecasts are made with."""
        return self.curves["power"]

    @property
    def limit(self) -> int:
        """The most rows that are spoken of."""
        return REACH * self.ladder.sizes[-1]

    def rungs(self) -> list[Point]:
        """Return what was measured."""
        spread, errors = zip(self.ladder.sizes, self.means.T, strict=True), self.ladder.errors
        return [_point(n, float(error), found, self.ladder) for (n, found), error in zip(spread, errors, strict=True)]

    def at(self, rows: int) -> Point:
        """Return the error to expect after training on so many rows; raises UsageError beyond four times the most."""
        return _point(rows, self.curve.at(rows), self.resampled.at(rows), self.ladder)

    def need(self, error: float) -> Need:
        """Return how many rows it takes until the error is no more than this. Raises UsageError outside 0 to 1."""
        if not 0 <= error < 1:
            raise UsageError(f"an error of {error:g} is no target; it lies from 0 to 1")
        measured = self.ladder.errors
        places = np.unique(np.geomspace(self.ladder.sizes[0], self.limit, 300).astype(int)).tolist()
        points = [self.at(rows) for rows in places]

        def first(errors: list[float]) -> int | None:
            return next((rows for rows, each in zip(places, errors, strict=True) if each <= error), None)

        rows, low, high = (first([getattr(each, end) for each in points]) for end in ("error", "low", "high"))
        if measured[-1] <= error:
            rows = next(n for n, each in zip(self.ladder.sizes, measured, strict=True) if each <= error)
            return Need(error, "reached", rows, low, high)
        if rows is not None:
            return Need(error, "reachable", rows, low, high)
        return Need(error, "not reachable by data alone" if low is None else "perhaps", None, low, high)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record: the ladder, the fit, its back-test, and the forecast at twice and four times."""
        most = self.ladder.sizes[-1]
        others = {form: curve.at(self.limit) for form, curve in self.curves.items() if form != "power"}
        fit = {"form": FORMS["power"], "a": self.curve.a, "b": self.curve.b, "c": self.curve.c, "other_forms": others}
        return {
            "ladder": [each.to_record() for each in self.rungs()],
            "fit": fit,
            "backtest": None if self.backtest is None else self.backtest.to_record(),
            "forecast": [self.at(times * most).to_record() for times in (2, REACH)],
        }


def _fitted(ladder: Ladder, means: np.ndarray) -> tuple[dict[Form, Curve], Curves]:
    """Return a curve of each form through the ladder, and power curves through its resampled means [draws, sizes]."""
    sizes = np.array(ladder.sizes)
    # Where no resample differs, as where all is right, half a row in all of them is still not told from none.
    weights = 1 / (means.var(axis=0) + (0.5 / ladder.wrong.shape[2]) ** 2)
    curves = {form: fit_curves(sizes, ladder.errors[None], weights, form).one() for form in FORMS}
    return curves, fit_curves(sizes, means, weights)


def _back_test(ladder: Ladder, means: np.ndarray) -> BackTest:
    """Return what all rungs but the last foretell of it."""
    rest, last, measured = ladder.below(len(ladder.sizes) - 1), ladder.sizes[-1], float(ladder.errors[-1])
    curves, resampled = _fitted(rest, means[:, :-1])
    predicted = _point(last, curves["power"].at(last), resampled.at(last), rest)
    return BackTest(predicted, measured, {form: curve.at(last) - measured for form, curve in curves.items()})


def _point(rows: int, error: float, resampled: np.ndarray, ladder: Ladder) -> Point:
    """Return an error with its interval, which reaches to what so few test rows could have left unseen, either way."""
    low, high = np.quantile(resampled, (_TAIL, 1 - _TAIL))
    seen = _TAIL ** (1 / ladder.wrong.shape[2])
    return Point(rows, error, min(float(low), error, seen), max(float(high), error, 1 - seen))
