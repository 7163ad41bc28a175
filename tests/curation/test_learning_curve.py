"""Curves of error: what is fitted is what was drawn, never below zero, never rising; nothing is said too far ahead."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from adapterhub.curation.learning_curve import FORMS, REACH, Curve, Form, fit_curves
from adapterhub.errors import DataError, UsageError

SIZES = np.array([25, 50, 100, 200, 400])
EVEN = np.ones(5)
numbers = st.floats(0.0, 1.0)


def fit(errors: list[float] | np.ndarray, form: Form = "power", weights: np.ndarray = EVEN) -> Curve:
    return fit_curves(SIZES, np.array([errors]), weights, form).one()


@given(a=st.floats(0.2, 3.0), b=st.floats(0.1, 1.4), c=st.floats(0.0, 0.3))
def test_a_power_law_is_recovered(a: float, b: float, c: float) -> None:
    found = fit(a * SIZES**-b + c)
    assert found.b == pytest.approx(b, abs=0.05)
    for rows in (25, 400, 800, 1600):
        assert found.at(rows) == pytest.approx(min(1.0, a * rows**-b + c), abs=0.015)


def test_each_form_recovers_its_own() -> None:
    assert fit(0.9 * SIZES**-0.5, "power without c").at(1600) == pytest.approx(0.9 / 40, rel=0.02)
    found = fit(0.4 * np.exp(-SIZES / 90) + 0.1, "exponential")
    assert (found.b, found.c) == (pytest.approx(1 / 90, rel=0.1), pytest.approx(0.1, abs=0.005))
    found = fit(0.05 * np.log(1600 / SIZES) + 0.02, "logarithmic")
    assert (found.a, found.b, found.c) == (pytest.approx(0.05), 1600, pytest.approx(0.02))
    assert str(fit(0.9 * SIZES**-0.5)) == "0.9 n^-0.5 + 0"
    assert [str(Curve(form, 0.5, 2.0, 0.25, 9.0)) for form in FORMS] == [
        "0.5 n^-2 + 0.25",
        "0.5 n^-2",
        "0.5 exp(-2 n) + 0.25",
        "0.5 log(2 / n) + 0.25",
    ]
    assert str(Curve("power", 0.5, 2.0, 4e-17, 9.0)) == "0.5 n^-2 + 0"


@given(errors=st.lists(numbers, min_size=5, max_size=5), form=st.sampled_from(list(FORMS)))
def test_no_curve_rises_or_is_negative(errors: list[float], form: Form) -> None:
    found = fit(errors, form)
    assert found.a >= 0
    assert found.c >= 0
    along = [found.at(rows) for rows in np.geomspace(1, REACH * 400, 50)]
    assert all(0 <= each <= 1 for each in along)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(along))


@settings(max_examples=50)
@given(
    errors=st.lists(numbers, min_size=5, max_size=5), weights=st.lists(st.floats(0.01, 100.0), min_size=5, max_size=5)
)
def test_a_and_c_are_the_non_negative_least_squares(errors: list[float], weights: list[float]) -> None:
    found = fit(errors, weights=np.array(weights))
    root = np.sqrt(weights)

    def rest(b: float) -> float:
        return float(nnls(np.stack([SIZES**-b, np.ones(5)], axis=1) * root[:, None], np.array(errors) * root)[1])

    mine = float(np.linalg.norm((found.a * SIZES**-found.b + found.c - errors) * root))
    assert mine == pytest.approx(rest(found.b), abs=1e-6)
    assert mine <= min(rest(b) for b in np.linspace(0.05, 1.5, 59)) + 1e-6


def test_a_heavy_size_is_met_more_closely() -> None:
    errors = [0.5, 0.3, 0.4, 0.1, 0.2]
    heavy = fit(errors, weights=np.array([1, 1, 1000, 1, 1]))
    assert abs(heavy.at(100) - 0.4) < abs(fit(errors).at(100) - 0.4)


def test_many_curves_are_those_fitted_one_by_one() -> None:
    errors = np.random.default_rng(0).uniform(0, 0.5, (20, 5))
    found = fit_curves(SIZES, errors, EVEN)
    for row, each in enumerate(errors):
        alone = fit(each)
        assert (found.a[row], found.b[row], found.c[row]) == pytest.approx((alone.a, alone.b, alone.c))
    assert found.at(300).tolist() == [found.one(row).at(300) for row in range(20)]


def test_nothing_is_said_beyond_four_times_the_most() -> None:
    found = fit(SIZES**-0.5)
    assert found.limit == 1600
    for rows in (1601, 0):
        with pytest.raises(UsageError, match="good from 1 to 1,600"):
            found.at(rows)


def test_what_is_no_curve_is_refused() -> None:
    for sizes in ([10, 20], [10, 10, 20], [0, 10, 20]):
        with pytest.raises(DataError, match="3 different sizes"):
            fit_curves(np.array(sizes), np.ones((1, len(sizes))), np.ones(len(sizes)))
    for errors, weights in (([np.nan] * 5, EVEN), ([-0.1] * 5, EVEN), ([0.1] * 5, np.zeros(5))):
        with pytest.raises(DataError, match="finite"):
            fit_curves(SIZES, np.array([errors]), weights)
