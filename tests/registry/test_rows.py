from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.example import Example
from adapterhub.errors import CorruptAdapter
from adapterhub.registry.rows import RowsChange, compare_rows, rows_text

pairs = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12)


def example(**fields: Any) -> Example:
    return Example("", fields)


def text(rows: list[tuple[str, str]]) -> str:
    return rows_text({"train": [example(text=asked, label=label) for asked, label in rows]}, "classification")


@given(pairs, pairs)
def test_changes_add_up_to_both_sides(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> None:
    change = compare_rows(text(before), text(after)).get("train", RowsChange(0, 0, 0, 0))
    assert change.same + change.relabelled + change.removed == len(before)
    assert change.same + change.relabelled + change.added == len(after)
    assert change.same == (Counter(before) & Counter(after)).total()
    back = compare_rows(text(after), text(before)).get("train", change)
    assert (back.added, back.removed, back.relabelled) == (change.removed, change.added, change.relabelled)


def test_a_row_with_another_answer_was_relabelled() -> None:
    found = compare_rows(text([("a", "x"), ("b", "x"), ("c", "x")]), text([("a", "x"), ("b", "y"), ("d", "x")]))
    assert found == {"train": RowsChange(added=1, removed=1, relabelled=1, same=1)}
    assert found["train"].to_record() == {"added": 1, "removed": 1, "relabelled": 1, "same": 1}


def test_a_split_that_came_or_went_is_told() -> None:
    rows = [example(text="a", label="x")]
    found = compare_rows(
        rows_text({"train": rows}, "classification"), rows_text({"out_of_scope.test": rows}, "classification")
    )
    assert found == {"train": RowsChange(0, 1, 0, 0), "out_of_scope.test": RowsChange(1, 0, 0, 0)}


@pytest.mark.parametrize(
    ("kind", "one", "other", "relabelled"),
    [
        ("generation", {"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "d"}, True),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "d"},
            {"prompt": "p", "chosen": "d", "rejected": "c"},
            True,
        ),
        ("embedding", {"text": "p", "positive": "c"}, {"text": "q", "positive": "c"}, False),
        (
            "generation",
            {"prompt": "p", "label": "c", "completion": "e"},
            {"prompt": "p", "label": "d", "completion": "e"},
            False,
        ),
        (
            "generation",
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}]},
            True,
        ),
        (
            "generation",
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
            {"messages": [{"role": "user", "content": "v"}, {"role": "assistant", "content": "a"}]},
            False,
        ),
    ],
)
def test_what_is_asked_and_what_is_answered_are_told_apart_in_every_kind(
    kind: str, one: dict[str, Any], other: dict[str, Any], relabelled: bool
) -> None:
    found = compare_rows(rows_text({"t": [example(**one)]}, kind), rows_text({"t": [example(**other)]}, kind))["t"]
    assert found == (RowsChange(0, 0, 1, 0) if relabelled else RowsChange(1, 1, 0, 0))


def test_no_text_stands_in_it() -> None:
    assert "secret" not in text([("secret", "secret")])


def test_a_strangers_rows_are_refused() -> None:
    with pytest.raises(CorruptAdapter, match="expected a split and two hashes"):
        compare_rows("train a b\nnonsense\n", "")
