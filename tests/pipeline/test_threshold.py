"""Thresholds against all there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.pipeline.threshold import keeping, separating

chances = st.lists(
    st.sampled_from([0.2, 0.5, 0.50001, 0.7, 1.0]) | st.floats(0.125, 1, width=32), min_size=1, max_size=30
)


def balanced(inside: list[float], outside: list[float], threshold: float | None) -> float:
    """The mean of in-scope kept and out-of-scope rejected, counted."""
    least = -1.0 if threshold is None else threshold
    kept = sum(not value < least for value in inside) / len(inside)
    return (kept + sum(value < least for value in outside) / len(outside)) / 2


@given(chances, chances)
def test_no_other_threshold_tells_them_apart_better(inside: list[float], outside: list[float]) -> None:
    found = separating(np.array(inside), np.array(outside))
    others = [None, *inside, *outside]
    best = max(balanced(inside, outside, each) for each in others)
    assert balanced(inside, outside, found.reject_below) == pytest.approx(best)
    if found.reject_below is None:
        assert "no threshold does better" in found.reason
    else:
        assert 0 < found.reject_below < 1
        assert found.reject_below not in (*inside, *outside)


def test_the_lowest_of_equally_good_ones_and_few_digits() -> None:
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


@given(st.lists(st.floats(0.125, 1, width=32), min_size=20, max_size=200, unique=True))
def test_at_most_a_twentieth_of_what_is_right_is_rejected(right: list[float]) -> None:
    found = keeping(np.array(right))
    assert found.reject_below is not None
    rejected = sum(value < found.reject_below for value in right)
    assert rejected == len(right) // 20


@given(chances)
def test_ties_are_kept_rather_than_rejected(right: list[float]) -> None:
    found = keeping(np.array(right))
    if found.reject_below is None:
        assert "too few or too alike" in found.reason
    else:
        assert sum(value < found.reject_below for value in right) <= len(right) / 20


def test_few_or_equal_rows_have_no_threshold() -> None:
    for right in ([], [0.5] * 19, [0.7] * 200):
        assert keeping(np.array(right)).reject_below is None
