"""What timings come to: known latencies have known percentiles, and a queue that grows is seen."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.bench.drive import Load
from adapterhub.bench.summary import Measured, Spread, percentile
from adapterhub.bench.timing import Timing

FINITE = st.floats(0, 1e6, allow_nan=False)


def measured(timings: Sequence[Timing], rate: float | None = None, seconds: float = 10.0) -> Measured:
    return Measured(Load(rate), timings, len(timings), seconds)


def test_percentiles_of_known_latencies() -> None:
    timings = [Timing("a", 1.0, 1.0 + ms / 1000, 1.0 + ms / 2000, 1.0 + ms / 1000, 5, 11) for ms in range(1, 102)]
    found = measured(timings)
    assert found.latency is not None
    assert found.latency.percentiles == pytest.approx({50: 0.051, 90: 0.091, 99: 0.1})
    assert found.latency.mean == pytest.approx(0.051)
    assert found.first_token is not None
    assert found.first_token.percentiles == pytest.approx({50: 0.0255, 90: 0.0455, 99: 0.05})
    # Ten tokens after the first, over the second half of the time.
    assert found.token is not None
    assert found.token.percentiles[50] == pytest.approx(0.00255)
    assert (found.requests_per_second, found.tokens_per_second) == (10.1, 111.1)


@given(st.lists(FINITE, min_size=1), st.floats(0, 100))
def test_a_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_times_of_failures_do_not_count() -> None:
    whole = Timing("a", 0.0, 1.0, 0.5, 1.0, 4, 3)
    broken = Timing("b", 0.0, 9.0, 8.0, 9.0, 4, 3, "503", "no room")
    found = measured(
        [broken, whole, Timing("b", 0.0, 7.0, error="503", message="later"), Timing("a", 1, 2, error="429")]
    )
    assert found.errors == {"503": 2, "429": 1}
    assert found.messages["503"] == "no room"
    assert found.latency == Spread(1, 1.0, {50: 1.0, 90: 1.0, 99: 1.0})
    record = json.loads(json.dumps(found.to_record()))
    assert (record["sent"], record["answered"], record["tokens"], record["prompt_tokens"]) == (4, 1, 3, 4)
    assert record["models"] == {"a": 1}
    assert record["latency_seconds"] == {"count": 1, "mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0}


def test_an_answer_without_text_has_no_token_times() -> None:
    found = measured([Timing("a", 0.0, 1.0), Timing("a", 0.0, 1.0, 0.5, 0.5, 1, 1)])
    assert found.first_token is not None
    assert found.first_token.count == 1
    assert found.token is None
    assert measured([]).to_record()["latency_seconds"] is None
    assert measured([], seconds=0.0).requests_per_second == measured([], seconds=0.0).tokens_per_second == 0.0


def served(rate: float, capacity: float, count: int = 200, least: float = 0.5) -> list[Timing]:
    """Requests at even distances to a server that answers `capacity` a second, none sooner than `least`."""
    free, found = 0.0, []
    for start in (index / rate for index in range(count)):
        free = max(free, start) + 1 / capacity
        found.append(Timing("a", start, free + least))
    return found


@pytest.mark.parametrize(("rate", "saturated"), [(1.0, False), (7.0, False), (14.0, True), (40.0, True)])
def test_a_queue_that_grows_is_saturation(rate: float, saturated: bool) -> None:
    assert measured(served(rate, capacity=8.0), rate).saturated is saturated
    assert measured(served(rate, capacity=8.0)).saturated is False  # askers who wait never ask too much


def test_bunches_of_arrivals_are_no_saturation() -> None:
    """A server with room for all, two seconds an answer, one request a second for 45 seconds, as chance has it."""
    draw, false = random.Random(0), 0
    for _ in range(400):
        at, timings = 0.0, []
        while (at := at + draw.expovariate(1.08)) < 45:
            timings.append(Timing("a", at, at + 2.07))
        false += measured(timings, 1.08).saturated
    assert false <= 8


def test_refusals_for_want_of_room_are_saturation_and_others_are_not() -> None:
    for error, saturated in (("503", True), ("429", True), ("timeout", True), ("400", False), ("connection", False)):
        timings = [Timing("a", i / 10, i / 10 + 0.01, error=error if i % 2 else None) for i in range(100)]
        assert measured(timings, 10.0).saturated is saturated, error


def test_a_load_shorter_than_an_answer_proves_nothing() -> None:
    # All are under way when the last arrives, as they would be on a server with room for any number.
    assert measured([Timing("a", i / 100, i / 100 + 9.0) for i in range(100)], 100.0).saturated is False


def test_what_was_interrupted_proves_nothing() -> None:
    timings = served(40.0, 8.0)
    assert Measured(Load(40.0), timings, 300, 10.0, interrupted=True).saturated is False
    assert measured([], 40.0).saturated is False
