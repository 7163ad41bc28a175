from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.training.batches import epoch_batches, ordered_batches, split_by_tokens

LENGTHS = st.lists(st.integers(1, 200), max_size=400)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_each_row_occurs_exactly_once_an_epoch(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(lengths, size, seed=seed, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= size for batch in batches)
    assert sum(len(batch) < size for batch in batches) <= 1


def test_equal_seeds_give_equal_batches_and_epochs_differ() -> None:
    lengths = [(7 * i) % 40 + 1 for i in range(300)]
    first = epoch_batches(lengths, 8, seed=3, epoch=0)
    assert epoch_batches(lengths, 8, seed=3, epoch=0) == first
    assert epoch_batches(lengths, 8, seed=3, epoch=1) != first
    assert epoch_batches(lengths, 8, seed=4, epoch=0) != first


def test_rows_of_a_batch_have_similar_lengths_but_batches_come_in_no_order_of_length() -> None:
    lengths = [i % 100 + 1 for i in range(4000)]
    batches = epoch_batches(lengths, 10, seed=0, epoch=0)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest != sorted(longest)


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
