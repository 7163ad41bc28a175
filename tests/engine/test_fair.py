"""Virtual token counters: who is owed what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.engine.fair import VirtualCounters


def test_costs_are_divided_by_the_weight() -> None:
    counters = VirtualCounters()
    counters.join("light")
    counters.join("heavy")
    counters.charge("light", 10.0, 1.0)
    counters.charge("heavy", 10.0, 4.0)
    assert counters["light"] == 10.0
    assert counters["heavy"] == 2.5


def test_a_share_that_comes_starts_at_the_least_of_those_present() -> None:
    counters = VirtualCounters()
    counters.join("a")
    counters.join("b")
    counters.charge("a", 100.0, 1.0)
    counters.charge("b", 30.0, 1.0)
    counters.join("c")
    assert counters["c"] == 30.0


def test_a_share_that_comes_back_is_owed_nothing_for_its_absence() -> None:
    counters = VirtualCounters()
    counters.join("away")
    counters.join("works")
    counters.leave("away")
    counters.charge("works", 50.0, 1.0)
    counters.join("away")
    assert counters["away"] == 50.0


def test_one_more_request_of_a_present_share_changes_nothing() -> None:
    counters = VirtualCounters()
    counters.join("a")
    counters.join("b")
    counters.charge("b", 9.0, 1.0)
    counters.join("b")
    assert counters["b"] == 9.0
    counters.leave("b")
    assert counters["b"] == 9.0


@given(st.lists(st.sampled_from("abcdef"), max_size=60))
def test_nothing_is_remembered_of_those_who_left(names: list[str]) -> None:
    counters = VirtualCounters()
    present: list[str] = []
    for name in names:
        if name in present:
            counters.leave(name)
            present.remove(name)
        else:
            counters.join(name)
            present.append(name)
        assert len(counters) == len(present)
    for name in set("abcdef") - set(present):
        with pytest.raises(KeyError):
            counters[name]


@given(
    st.lists(st.floats(1, 50), min_size=40, max_size=80), st.lists(st.sampled_from([0.5, 1, 3]), min_size=3, max_size=3)
)
def test_backlogged_shares_differ_by_one_request_at_most(costs: list[float], weights: list[float]) -> None:
    counters = VirtualCounters()
    for index in range(len(weights)):
        counters.join(str(index))
    for cost in costs:
        share = min("012"[: len(weights)], key=counters.__getitem__)
        counters.charge(share, cost, weights[int(share)])
    values = [counters[str(index)] for index in range(len(weights))]
    assert max(values) - min(values) <= max(costs) / min(weights)


def test_waiting_for_a_load_earns_nothing() -> None:
    counters = VirtualCounters()
    for share in ("cold", "busy", "busier"):
        counters.join(share)
    counters.charge("busy", 100.0, 1.0)
    counters.charge("busier", 300.0, 1.0)
    counters.lift("cold", {"busy", "busier"})
    assert counters["cold"] == 100.0
    counters.lift("busier", {"busy"})
    assert counters["busier"] == 300.0
    counters.lift("cold", set())
    assert counters["cold"] == 100.0
