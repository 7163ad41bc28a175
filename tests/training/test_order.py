from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.training.order import Order

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=400)
SIZES = st.one_of(
    st.tuples(st.integers(1, 9), st.none()),
    st.tuples(st.just(32), st.integers(1, 900)),
)


def order(lengths: list[int], size: int = 8, tokens: int | None = None, *, seed: int = 0, alike: bool = True) -> Order:
    return Order(lengths, batch_size=size, batch_tokens=tokens, seed=seed, alike=alike)


def epoch_of(found: Order, lengths: list[int], skipped: int = 0) -> list[list[int]]:
    """The batches after `skipped` until every row has occurred once."""
    batches: list[list[int]] = []
    while sum(map(len, batches)) < len(lengths):
        batches.append(found.batch(skipped + len(batches)))
    return batches


@given(LENGTHS, SIZES, st.integers(0, 2**32 - 1), st.booleans())
def test_each_row_occurs_exactly_once_an_epoch(
    lengths: list[int], sizes: tuple[int, int | None], seed: int, alike: bool
) -> None:
    size, tokens = sizes
    found = order(lengths, size, tokens, seed=seed, alike=alike)
    taken = 0
    for _ in range(3):
        batches = epoch_of(found, lengths, taken)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        if tokens is None:
            assert all(0 < len(batch) <= size for batch in batches)
            assert sum(len(batch) < size for batch in batches) <= 1
        else:
            assert all(len(batch) == 1 or sum(lengths[row] for row in batch) <= tokens for batch in batches)
        taken += len(batches)


@given(LENGTHS, SIZES, st.integers(0, 60), st.booleans())
def test_any_step_is_found_without_taking_those_before(
    lengths: list[int], sizes: tuple[int, int | None], step: int, alike: bool
) -> None:
    walked = order(lengths, *sizes, alike=alike)
    batches = [walked.batch(each) for each in range(step + 1)]
    assert order(lengths, *sizes, alike=alike).batch(step) == batches[step]
    assert walked.batch(0) == batches[0]  # and back again


def test_batches_by_tokens_are_filled_as_far_as_they_go() -> None:
    lengths = [(7 * i) % 40 + 1 for i in range(300)]
    for alike in (False, True):
        batches = epoch_of(order(lengths, tokens=200, alike=alike), lengths)
        sums = [sum(lengths[row] for row in batch) for batch in batches]
        assert max(sums) <= 200
        assert sum(total < 150 for total in sums) <= 2  # what was left of the rows


def test_equal_seeds_give_equal_batches_and_epochs_differ() -> None:
    lengths = [(7 * i) % 40 + 1 for i in range(304)]
    for alike in (False, True):
        first = epoch_of(order(lengths, seed=3, alike=alike), lengths)
        assert epoch_of(order(lengths, seed=3, alike=alike), lengths) == first
        assert epoch_of(order(lengths, seed=3, alike=alike), lengths, 38) != first
        assert epoch_of(order(lengths, seed=4, alike=alike), lengths) != first


def test_rows_of_a_batch_have_similar_lengths_but_batches_come_in_no_order_of_length() -> None:
    lengths = [i % 100 + 1 for i in range(4000)]
    batches = epoch_of(order(lengths, 10), lengths)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest != sorted(longest)


def test_where_nothing_is_padded_lengths_play_no_part() -> None:
    lengths = [i % 100 + 1 for i in range(400)]
    mixed = epoch_of(order(lengths, 10, alike=False), lengths)
    assert mixed == epoch_of(order([5] * 400, 10, alike=False), lengths)
    assert sum(len(batch) * max(lengths[i] for i in batch) for batch in mixed) > 1.5 * sum(lengths)


@pytest.mark.parametrize("alike", [False, True])
def test_steps_come_from_epochs_which_may_be_a_fraction_or_are_given(alike: bool) -> None:
    hundred = order([5] * 100, 32, alike=alike)
    assert hundred.steps_an_epoch == 4
    assert hundred.steps(epochs=2.0, steps=None) == 8
    assert hundred.steps(epochs=0.5, steps=None) == 2
    assert hundred.steps(epochs=0.01, steps=None) == 1
    assert hundred.steps(epochs=None, steps=5) == 5
    # 1.1 * 10 is 11.000000000000002.
    ten = order([5] * 10, 1, alike=alike)
    assert ten.steps(epochs=1.1, steps=None) == 11
    assert ten.steps(epochs=1.11, steps=None) == 12


@given(LENGTHS, SIZES, st.floats(0.1, 3.0), st.booleans())
def test_epochs_and_steps_agree(lengths: list[int], sizes: tuple[int, int | None], epochs: float, alike: bool) -> None:
    found = order(lengths, *sizes, alike=alike)
    steps = found.steps(epochs=epochs, steps=None)
    assert steps >= 1
    # Counted back, the steps are at least the epochs that were asked for, and no batch too many.
    assert found.epoch_of(steps) >= epochs - 1e-6
    assert steps == 1 or found.epoch_of(steps - 1) < epochs
    assert found.epoch_of(0) == 0.0
    assert math.isclose(found.epoch_of(found.steps_an_epoch), 1.0)
