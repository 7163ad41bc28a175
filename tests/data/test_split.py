from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.example import Example
from adapterhub.data.split import hold_out
from adapterhub.errors import DataError


def rows(**counts: int) -> list[Example]:
    return [
        Example(f"{label}{n}", {"text": "t", "label": label}) for label, count in counts.items() for n in range(count)
    ]


def test_every_label_gives_its_share() -> None:
    kept, held = hold_out(rows(a=100, b=50, c=10, d=3), 0.1, seed=0)
    assert Counter(row.label for row in held) == {"a": 10, "b": 5, "c": 1}
    assert len(kept) == 163 - 16


def test_the_choice_is_that_of_ids_and_seed() -> None:
    examples = rows(a=60, b=60)
    _, held = hold_out(examples, seed=1)
    _, again = hold_out(list(reversed(examples)), seed=1)
    _, other = hold_out(examples, seed=2)
    assert held == list(reversed(again))
    assert held != other
    assert len(held) == len(other) == 12
    assert [row.id for row in held if row.label == "a"] == ["a4", "a14", "a18", "a22", "a23", "a37"]


def test_examples_without_labels_split_too() -> None:
    kept, held = hold_out([Example(str(n), {"prompt": "p"}) for n in range(20)], 0.25)
    assert (len(kept), len(held)) == (15, 5)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 30), min_size=1), st.floats(0.01, 0.9), st.integers(0, 99)
)
def test_nothing_is_lost_and_no_label_disappears(counts: dict[str, int], fraction: float, seed: int) -> None:
    examples = rows(**counts)
    if max(counts.values()) == 1:
        with pytest.raises(DataError, match="too few"):
            hold_out(examples, fraction, seed)
        return
    kept, held = hold_out(examples, fraction, seed)
    assert sorted(row.id for row in kept + held) == sorted(row.id for row in examples)
    assert {row.label for row in kept} == set(counts)
    possible = sum(count - 1 for count in counts.values())
    assert abs(len(held) - min(possible, fraction * len(examples))) <= max(1, len(counts) / 2)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="too few to hold any out"):
        hold_out(rows(a=1))
    with pytest.raises(DataError, match="0 training example"):
        hold_out([])
