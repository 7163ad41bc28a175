"""What a step costs besides its tokens, learnt from steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.engine.step_cost import USUAL, StepCost

SIZES = (1, 2, 4, 1, 40, 2, 1, 9) * 10


@given(st.floats(2.5, 900), st.floats(1e-6, 1.0))
def test_a_line_is_found_whatever_its_unit(fixed: float, slope: float) -> None:
    cost = StepCost()
    for tokens in SIZES:
        cost.note(tokens, (fixed + tokens) * slope)
    assert cost.fixed == pytest.approx(fixed, rel=1e-3)


@pytest.mark.parametrize("sizes", [(16,) * 100, SIZES[:10]], ids=["all alike", "few"])
def test_steps_that_tell_nothing_change_nothing(sizes: tuple[int, ...]) -> None:
    cost = StepCost()
    for tokens in sizes:
        cost.note(tokens, 1.0 + tokens)
    assert cost.fixed == USUAL


def test_large_steps_are_left_out() -> None:
    cost = StepCost()
    for tokens in SIZES:
        cost.note(tokens, 10.0 + tokens)
        cost.note(1000 + tokens, 1.0)
    assert cost.fixed == pytest.approx(10.0)


def test_a_line_that_falls_changes_nothing() -> None:
    cost = StepCost()
    for tokens in SIZES:
        cost.note(tokens, 1.0 - tokens / 100)
    assert cost.fixed == USUAL


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 10)), max_size=80))
def test_it_stays_within_bounds(steps: list[tuple[int, float]]) -> None:
    cost = StepCost()
    for tokens, seconds in steps:
        cost.note(tokens, seconds)
    assert 2.0 <= cost.fixed <= 1024.0


def test_what_is_long_ago_fades() -> None:
    cost = StepCost()
    for tokens in SIZES * 2:
        cost.note(tokens, 100.0 + tokens)
    for tokens in SIZES * 40:
        cost.note(tokens, 10.0 + tokens)
    assert cost.fixed == pytest.approx(10.0, rel=0.05)
