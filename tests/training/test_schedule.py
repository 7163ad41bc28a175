from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.training.schedule import multiplier, total_steps


def test_steps_come_from_epochs_which_may_be_a_fraction_or_are_given() -> None:
    assert total_steps(100, 32, epochs=2.0, steps=None) == 8
    assert total_steps(100, 32, epochs=0.5, steps=None) == 2
    assert total_steps(100, 32, epochs=0.01, steps=None) == 1
    assert total_steps(100, 32, epochs=None, steps=5) == 5
    # 1.1 * 10 is 11.000000000000002.
    assert total_steps(10, 1, epochs=1.1, steps=None) == 11
    assert total_steps(10, 1, epochs=1.11, steps=None) == 12


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_rises_then_falls_and_every_step_learns(schedule: str) -> None:
    rates = [multiplier(step, 100, 0.1, schedule) for step in range(100)]  # type: ignore[arg-type]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[0] < 0.1
    assert 0 < rates[-1] < 0.02
    assert multiplier(100, 100, 0.1, schedule) == pytest.approx(0)  # type: ignore[arg-type]


def test_the_known_values_of_linear_and_cosine() -> None:
    assert multiplier(55, 100, 0.1, "linear") == pytest.approx(0.5)
    assert multiplier(55, 100, 0.1, "cosine") == pytest.approx(0.5)
    assert multiplier(32, 100, 0.1, "linear") == pytest.approx(68 / 90)
    assert multiplier(99, 100, 0.1, "constant") == 1.0


@given(st.integers(1, 300), st.integers(0, 300), st.floats(0, 1), st.sampled_from(["linear", "cosine", "constant"]))
def test_the_factor_stays_between_zero_and_one(total: int, step: int, warmup: float, schedule: str) -> None:
    assert 0 <= multiplier(step, total, warmup, schedule) <= 1  # type: ignore[arg-type]
