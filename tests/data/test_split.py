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
        Example(f"{label}{n}", {"text": f"{label} {n}", "label": label})
        for label, count in counts.items()
        for n in range(count)
    ]


def test_every_label_gives_its_share() -> None:
    kept, held = hold_out(rows(a=100, b=50, c=10, d=3), "classification", 0.1, seed=0)
    assert Counter(row.label for row in held) == {"a": 10, "b": 5, "c": 1}
    assert len(kept) == 163 - 16


def test_the_choice_is_that_of_ids_and_seed() -> None:
    examples = rows(a=60, b=60)
    _, held = hold_out(examples, "classification", seed=1)
    _, again = hold_out(list(reversed(examples)), "classification", seed=1)
    _, other = hold_out(examples, "classification", seed=2)
    assert held == list(reversed(again))
    assert held != other
    assert len(held) == len(other) == 12
    assert [row.id for row in held if row.label == "a"] == ["a4", "a14", "a18", "a22", "a23", "a37"]


def test_examples_without_labels_split_too() -> None:
    kept, held = hold_out([Example(str(n), {"prompt": f"p{n}"}) for n in range(20)], "generation", 0.25)
    assert (len(kept), len(held)) == (15, 5)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 30), min_size=1), st.floats(0.01, 0.9), st.integers(0, 99)
)
def test_nothing_is_lost_and_no_label_disappears(counts: dict[str, int], fraction: float, seed: int) -> None:
    examples = rows(**counts)
    if max(counts.values()) == 1:
        with pytest.raises(DataError, match="too few"):
            hold_out(examples, "classification", fraction, seed)
        return
    kept, held = hold_out(examples, "classification", fraction, seed)
    assert sorted(row.id for row in kept + held) == sorted(row.id for row in examples)
    assert {row.label for row in kept} == set(counts)
    # Of every label its share, to the nearest row, but for one that stays.
    wanted = sum(min(count - 1, fraction * count) for count in counts.values())
    assert abs(len(held) - wanted) <= max(1, len(counts) / 2)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="too few to hold any out"):
        hold_out(rows(a=1), "classification")
    with pytest.raises(DataError, match="0 training example"):
        hold_out([], "classification")


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xy")), min_size=12), st.integers(0, 99))
def test_rows_of_equal_input_are_never_on_both_sides(pairs: list[tuple[str, str]], seed: int) -> None:
    examples = [Example(str(n), {"text": text, "label": label}) for n, (text, label) in enumerate(pairs)]
    try:
        kept, held = hold_out(examples, "classification", 0.3, seed)
    except DataError:
        return
    assert not {row.text for row in kept} & {row.text for row in held}
    assert {row.label for row in kept} == {label for _, label in pairs}


def test_what_is_equal_input_is_what_the_base_reads() -> None:
    turns = [{"role": "user", "content": "hi"}]
    answered = [[*turns, {"role": "assistant", "content": str(n)}] for n in range(10)]
    with pytest.raises(DataError, match="1 different input"):
        hold_out([Example(str(n), {"messages": given}) for n, given in enumerate(answered)], "generation")
    asked = [Example(str(n), {"prompt": "p", "about": n % 5, "completion": "c"}) for n in range(20)]
    with pytest.raises(DataError, match="1 different input"):
        hold_out(asked, "generation")
    kept, held = hold_out(asked, "generation", 0.2, template="{prompt} {about}")
    assert len(held) == 4
    assert not {row.fields["about"] for row in kept} & {row.fields["about"] for row in held}
    with pytest.raises(DataError, match="'where' is missing"):
        hold_out(asked, "generation", template="{where}")


def test_fields_of_other_kinds_do_not_matter() -> None:
    examples = [Example(str(n), {"prompt": f"p{n}", "label": ["a"], "labels": 5}) for n in range(20)]
    assert len(hold_out(examples, "generation")[1]) == 2
