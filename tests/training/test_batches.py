from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.training.batches import ordered_batches, split_by_tokens

LENGTHS = st.lists(st.integers(1, 200), max_size=400)


@given(LENGTHS, st.integers(1, 9))
def test_ordered_batches_hold_every_row_once_shortest_first(lengths: list[int], size: int) -> None:
    rows = [row for batch in ordered_batches(lengths, size) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)


@given(LENGTHS, st.integers(1, 600))
def test_parts_keep_every_row_in_order_and_stay_below_the_limit(lengths: list[int], limit: int) -> None:
    parts = split_by_tokens(range(len(lengths)), lengths, limit)
    assert [row for part in parts for row in part] == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= limit


def test_a_batch_that_fits_is_one_part() -> None:
    assert split_by_tokens([4, 2, 0], [5, 9, 5, 9, 5], 15) == [[4, 2, 0]]
