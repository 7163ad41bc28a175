"""Nested orders: every beginning is a fair sample."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.curation.nested import nested_order


@given(labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_every_beginning_has_the_labels_as_all_rows_have_them(labels: list[str], seed: int) -> None:
    ids = [f"row {place}" for place in range(len(labels))]
    order = nested_order(ids, labels, seed)
    assert sorted(order) == list(range(len(labels)))
    for size in range(1, len(labels) + 1):
        for label in set(labels):
            share = labels.count(label) / len(labels)
            assert abs([labels[row] for row in order[:size]].count(label) - share * size) <= 1.0 + 1e-9


def test_seeds_draw_and_places_do_not() -> None:
    ids, labels = [f"row {place}" for place in range(20)], ["a", "b"] * 10
    order = [ids[row] for row in nested_order(ids, labels, 0)]
    assert order != [ids[row] for row in nested_order(ids, labels, 1)]
    assert order == [ids[::-1][row] for row in nested_order(ids[::-1], labels[::-1], 0)]
