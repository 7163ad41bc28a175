"""Forecasts: how often their intervals hold the truth, what they say of targets, and how they test themselves."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.curation.forecast import Forecast
from adapterhub.curation.ladder import Ladder
from adapterhub.errors import DataError, UsageError
from tests.curation.climbing import SIZES, ladder, truth


def flat(errors: list[float], rows: int = 100) -> Ladder:
    """Return a ladder on which just so many rows are wrong, whatever the seed."""
    wrong = np.arange(rows) < np.array(errors)[:, None, None] * rows
    return Ladder(SIZES[: len(errors)], np.broadcast_to(wrong, (len(errors), 2, rows)).astype(np.float32))


def test_nine_of_ten_intervals_hold_the_truth() -> None:
    runs = [Forecast.of(ladder(seed), 300, seed) for seed in range(80)]
    for rows in (800, 1600):
        held = [point.low <= truth(rows) <= point.high for point in (each.at(rows) for each in runs)]
        assert np.mean(held) >= 0.85, rows
        assert np.mean([each.at(rows).error for each in runs]) == pytest.approx(truth(rows), abs=0.015)
        assert np.mean([each.at(rows).high - each.at(rows).low for each in runs]) < 0.1
    tests = [each.backtest for each in runs]
    assert np.mean([test is not None and test.within for test in tests]) >= 0.85


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), c=st.floats(0.0, 0.3))
def test_points_lie_in_their_intervals_and_never_rise(seed: int, c: float) -> None:
    found = Forecast.of(ladder(seed, rows=60, seeds=2, c=c), 60)
    points = [found.at(rows) for rows in (25, 100, 400, 800, 1600)]
    assert all(0 <= point.low <= point.error <= point.high <= 1 for point in points)
    assert all(later.error <= earlier.error for earlier, later in pairwise(points))
    assert [each.n for each in found.rungs()] == list(SIZES)
    assert all(each.low <= each.error <= each.high for each in found.rungs())


def test_a_target_is_reached_reachable_perhaps_or_not() -> None:
    found = Forecast.of(ladder(3))
    measured = found.ladder.errors
    reached = found.need(float(measured[2]))
    assert (reached.answer, reached.rows) == ("reached", 100)
    need = found.need(0.12)
    assert need.answer == "reachable"
    assert need.rows is not None
    assert 400 < need.rows < 1600
    assert found.at(need.rows).error <= 0.12 < found.at(need.rows - 20).error
    assert need.low is not None
    assert need.low < need.rows
    assert need.high is None or need.high > need.rows
    least = found.at(1600)
    perhaps = found.need((least.low + least.error) / 2)
    assert (perhaps.answer, perhaps.rows, perhaps.high) == ("perhaps", None, None)
    never = found.need(least.low / 2)
    assert (never.answer, never.rows, never.low, never.high) == ("not reachable by data alone", None, None, None)
    for error in (-0.1, 1.0):
        with pytest.raises(UsageError, match="no target"):
            found.need(error)


def test_the_back_test_leaves_out_the_largest_size() -> None:
    errors = [0.4, 0.3, 0.24, 0.2, 0.9]
    found = Forecast.of(flat(errors))
    assert found.backtest is not None
    before = Forecast.of(flat(errors[:4]))
    assert found.backtest.predicted.error == pytest.approx(before.at(400).error)
    assert found.backtest.measured == pytest.approx(0.9)
    assert found.backtest.misses["power"] == pytest.approx(before.at(400).error - 0.9)
    assert not found.backtest.within
    assert Forecast.of(flat(errors[:3])).backtest is None
    kind = Forecast.of(flat([0.8, 0.4, 0.2, 0.1])).backtest
    assert kind is not None
    assert kind.best in ("power", "power without c")
    # A largest size beyond the reach of the others is not foretold by them.
    assert Forecast.of(Ladder((25, 50, 100, 401), flat(errors[:4]).wrong)).backtest is None
    assert Forecast.of(Ladder((25, 50, 100, 400), flat(errors[:4]).wrong)).backtest is not None


def test_no_error_at_all_is_not_sure_to_stay_so() -> None:
    found = Forecast.of(flat([0.1, 0.0, 0.0, 0.0], rows=50))
    assert found.at(400).low < 0.001
    assert 0.05 < found.at(800).high < 0.07  # 1 - 0.05 ** (1 / 50)
    wrong = Forecast.of(flat([1.0, 1.0, 1.0, 1.0], rows=2)).rungs()[-1]
    assert (wrong.error, wrong.high) == (1.0, 1.0)
    assert wrong.low == pytest.approx(0.05**0.5)  # two rows that are wrong do not say that all are


def test_the_record_and_its_limits() -> None:
    found = Forecast.of(ladder(0), 50)
    record = json.loads(json.dumps(found.to_record()))
    assert [each["n"] for each in record["ladder"]] == list(SIZES)
    assert [each["n"] for each in record["forecast"]] == [800, 1600]
    assert record["forecast"][0].keys() == record["ladder"][0].keys() == {"n", "error", "low", "high"}
    assert record["fit"].keys() == {"form", "a", "b", "c", "other_forms"}
    assert record["backtest"]["miss"].keys() == {"power", "power without c", "exponential", "logarithmic"}
    assert record == json.loads(json.dumps(Forecast.of(ladder(0), 50).to_record()))
    with pytest.raises(UsageError, match="1,600"):
        found.at(1601)
    with pytest.raises(DataError, match="3 sizes"):
        Forecast.of(ladder(0).below(2))
    assert Forecast.of(ladder(0).below(3), 20).to_record()["backtest"] is None
