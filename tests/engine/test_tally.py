"""Counts an adapter, bounded in number."""

from __future__ import annotations

from adapterhub.engine.tally import OTHERS, AdapterCounts, Residency, Tally


def test_adapters_beyond_the_most_are_counted_together() -> None:
    tally = Tally(most=2)
    for digest in ("a", "", "c", "d", "a", "c"):
        tally.of(digest).loads += 1
    counts = tally.counts()
    assert {digest: each.loads for digest, each in counts.items()} == {"a": 2, "": 1, OTHERS: 3}
    tally.of("a").loads += 1
    assert counts["a"].loads == 2  # a copy


def test_counts_add_up() -> None:
    both = AdapterCounts(1, 0.5, 2, 3, 4, 5) + AdapterCounts(10, 0.25, 20, 30, 40, 50)
    assert both == AdapterCounts(11, 0.75, 22, 33, 44, 55)


def test_the_highest_place_counts() -> None:
    places = [Residency(slot=True, memory=True), Residency(memory=True), Residency(pinned=True)]
    assert [each.place for each in places] == ["slot", "memory", "disk"]
