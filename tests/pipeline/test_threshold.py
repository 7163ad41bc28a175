"""Thresholds against all there are, counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.pipeline.threshold import candidates, keeping, separating

chances = st.lists(
    st.sampled_from([0.2, 0.5, 0.50001, 0.7, 1.0]) | st.floats(0.125, 1, width=32), min_size=1, max_size=30
)


def balanced(inside: list[float], outside: list[float], threshold: float | None) -> float:
    """The mean of in-scope kept and out-of-scope rejected."""
    least = -1.0 if threshold is None else threshold
    kept = sum(not value < least for value in inside) / len(inside)
    return (kept + sum(value < least for value in outside) / len(outside)) / 2


@given(chances, chances)
def test_no_other_threshold_tells_them_apart_better(inside: list[float], outside: list[float]) -> None:
    found = separating(np.array(inside), np.array(outside))
    best = max(balanced(inside, outside, each) for each in (None, *candidates().tolist()))
    assert balanced(inside, outside, found.reject_below) == pytest.approx(best)
    if found.reject_below is None:
        assert "no threshold does better" in found.reason
    else:
        assert 0 < found.reject_below < 1
        assert best > 0.5


def test_the_middle_of_what_is_equally_good_and_the_lowest_of_several() -> None:
    found = separating(np.array([0.9, 0.8, 0.95]), np.array([0.3, 0.5]))
    assert found.reject_below == 0.65
    assert found.reason == (
        "the best balanced accuracy on 3 validation rows and 2 out-of-scope ones: 100.0% kept, 100.0% rejected"
    )
    # Rejecting 0.6 costs half of what is in scope and wins half of what is not.
    assert separating(np.array([0.6, 0.9]), np.array([0.4, 0.7])).reject_below == 0.5


def test_what_cannot_be_told_apart_is_not_rejected() -> None:
    alike = [0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0]
    for inside, outside in (([0.4, 0.5], [0.9, 0.8]), ([0.5], [0.5]), ([1.0, 1.0], [1.0]), (alike * 7, alike * 3)):
        assert separating(np.array(inside), np.array(outside)).reject_below is None


def test_near_one_there_are_thresholds_too() -> None:
    found = separating(np.array([0.99999, 1.0]), np.array([0.99, 0.99992])).reject_below
    assert found is not None
    assert 0.99992 < found <= 0.99999
    assert str(found) == "0.99996"


def test_thresholds_rise_and_have_few_digits() -> None:
    grid = candidates().tolist()
    assert grid == sorted(set(grid))
    assert (grid[0], grid[-1]) == (0.001, 0.999999)
    assert max(len(str(each)) for each in grid) == len("0.999999")


def test_answers_that_round_otherwise_give_the_same_threshold() -> None:
    dice = np.random.default_rng(0)
    inside, outside = dice.beta(8, 1, 3000), dice.beta(2, 2, 100)
    wanted = separating(inside, outside), keeping(inside)
    for _ in range(20):
        noise = [1 + 1e-7 * dice.normal(size=len(values)) for values in (inside, outside)]
        shaken = np.minimum(inside * noise[0], 1), np.minimum(outside * noise[1], 1)
        assert (separating(*shaken).reject_below, keeping(shaken[0]).reject_below) == tuple(
            each.reject_below for each in wanted
        )


@given(st.lists(st.floats(0.125, 1, width=32), min_size=20, max_size=200))
def test_at_most_a_twentieth_of_what_is_right_is_rejected(right: list[float]) -> None:
    found = keeping(np.array(right))
    allowed = {each: sum(value < each for value in right) for each in candidates().tolist()}
    most = max(count for count in allowed.values() if count <= len(right) / 20)
    if found.reject_below is None:
        assert most == 0
        assert "too few, or too alike" in found.reason
    else:
        assert allowed[found.reject_below] == most > 0
        assert f"keeps {1 - most / len(right):.1%} of {len(right)}" in found.reason


def test_few_or_equal_rows_have_no_threshold() -> None:
    for right in ([], [0.5] * 19, [0.7] * 200):
        assert keeping(np.array(right)).reject_below is None
