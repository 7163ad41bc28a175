"""Curves of error against training rows: error = a n^-b + c, and the forms that compete with it.

Each form is linear in a and c once its shape b is chosen: b is searched on a grid, and a, c >= 0 come from weighted
non-negative least squares. So no curve rises with n, and none falls below zero.

c is where a curve flattens among the sizes that were measured, and no more than that. It is not the error that no model
could avoid: other features, another base or cleaner labels lead to another c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapterhub.errors import DataError, UsageError

Form = Literal["power", "power without c", "exponential", "logarithmic"]
# How each form is written, for people.
FORMS: Mapping[Form, str] = {
    "power": "a n^-b + c",
    "power without c": "a n^-b",
    "exponential": "a exp(-b n) + c",
    "logarithmic": "a log(b / n) + c",
}
# How far beyond the largest measured size a curve is asked: beyond, data cannot tell the forms apart.
REACH = 4
LEAST_SIZES = 3
_EXPONENTS = np.linspace(0.05, 1.5, 59)
# Exponential decays, in units of one over the largest size.
_RATES = np.geomspace(0.05, 50.0, 60)
# An error that no number of test rows could tell from none.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Curve:
    """A fitted curve, good up to `limit` rows. `b` of the logarithmic form is that limit."""

    form: Form
    a: float
    b: float
    c: float
    limit: float

    def at(self, rows: float) -> float:
        """Return the error at so many rows, between 0 and 1. Raises UsageError beyond the limit."""
        if not 0 < rows <= self.limit:
            raise UsageError(
                f"a curve cannot be asked for {rows:,.0f} rows: it is good from 1 to {self.limit:,.0f}, {REACH} times "
                "the most that were measured; measure on more rows first"
            )
        a, b, c = np.array([[self.a], [self.b], [self.c]])
        return float(Curves(self.form, a, b, c, self.limit).at(rows)[0])

    def __str__(self) -> str:
        """Return the curve with its numbers; a c that is nothing but rounding is none."""
        c = self.c if self.c >= _NOTHING else 0.0
        if self.form == "exponential":
            return f"{self.a:.3g} exp(-{self.b:.3g} n) + {c:.3g}"
        if self.form == "logarithmic":
            return f"{self.a:.3g} log({self.b:,.0f} / n) + {c:.3g}"
        return f"{self.a:.3g} n^-{self.b:.3g}" + (f" + {c:.3g}" if self.form == "power" else "")


@dataclass(frozen=True)
class Curves:
    """Many curves of one form: `a`, `b`, `c` float64 [curves] each."""

    form: Form
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    limit: float

    def at(self, rows: float) -> np.ndarray:
        """Return float64 [curves]: the errors at so many rows, between 0 and 1."""
        if self.form == "exponential":
            shape = np.exp(-self.b * rows)
        elif self.form == "logarithmic":
            shape = np.log(self.b / rows)
        else:
            shape = rows**-self.b
        found: np.ndarray = np.clip(self.a * shape + self.c, 0.0, 1.0)
        return found

    def one(self, place: int = 0) -> Curve:
        """Return one of the curves."""
        return Curve(self.form, float(self.a[place]), float(self.b[place]), float(self.c[place]), self.limit)


def fit_curves(sizes: np.ndarray, errors: np.ndarray, weights: np.ndarray, form: Form = "power") -> Curves:
    """Fit a curve to each row of `errors`, float64 [curves, sizes]; `weights` [sizes] are 1 / SE^2.

    Raises DataError for fewer than three different sizes, and for errors or weights that make no sense.
    """
    given, errors = np.asarray(sizes, np.float64), np.asarray(errors, np.float64)
    weights = np.asarray(weights, np.float64)
    if len(given) < LEAST_SIZES or len(np.unique(given)) < len(given) or given.min() <= 0:
        raise DataError(f"a curve needs {LEAST_SIZES} different sizes at least, not {[int(each) for each in given]}")
    if not (np.isfinite(errors).all() and (errors >= 0).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise DataError("a curve needs errors of 0 or more, and weights above 0, all finite")
    limit = REACH * float(given.max())
    shapes, phi = _shapes(given, form, limit)
    a, c, rest = _least_squares(phi, errors, weights / weights.sum(), offset=form != "power without c")
    best = rest.argmin(axis=1)
    rows = np.arange(len(errors))
    b = shapes[best]
    scale = given.min() ** b if form.startswith("power") else 1.0
    return Curves(form, a[rows, best] * scale, b, c[rows, best], limit)


def _shapes(sizes: np.ndarray, form: Form, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return each b to try, [shapes], and what it makes of n, [shapes, sizes]; powers in units of the least size."""
    if form == "exponential":
        rates = _RATES / sizes.max()
        return rates, np.exp(-rates[:, None] * sizes)
    if form == "logarithmic":
        # Non-negative up to the limit, and so is every multiple of it.
        return np.array([limit]), np.log(limit / sizes)[None]
    return _EXPONENTS, (sizes / sizes.min()) ** -_EXPONENTS[:, None]


def _least_squares(
    phi: np.ndarray, errors: np.ndarray, weights: np.ndarray, *, offset: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a, c >= 0 and the weighted squares left, [curves, shapes] each; `phi` [shapes, sizes], weights sum to 1.

    With two unknowns the solution lies inside, or on the better one of two edges.
    """
    mean_phi, square_phi = phi @ weights, phi**2 @ weights
    mean = (errors @ weights)[:, None]
    cross = errors * weights @ phi.T
    alone = cross / square_phi
    if offset:
        spread = square_phi - mean_phi**2
        a = np.divide(cross - mean * mean_phi, spread, out=np.zeros_like(cross), where=spread > 1e-15)
        c = mean - a * mean_phi
        a, c = np.where(a < 0, 0.0, a), np.where(a < 0, mean, c)
        a, c = np.where(c < 0, alone, a), np.where(c < 0, 0.0, c)
    else:
        a, c = alone, np.zeros_like(alone)
    square = (errors**2 @ weights)[:, None]
    rest = square - 2 * (a * cross + c * mean) + a**2 * square_phi + 2 * a * c * mean_phi + c**2
    return a, c, rest
