from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.example import Example, collect_labels, content_id, open_turns
from adapterhub.errors import InvalidRequest

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
records = st.dictionaries(st.text(), values)


def test_an_id_is_pinned() -> None:
    # Changing how ids are made would change every published card.
    assert content_id({"text": "Wo ist Überlingen ?", "label": "location"}) == "9811b5811f04320a"


@given(records)
def test_an_id_depends_on_content_not_on_order(fields: dict[str, object]) -> None:
    reordered = dict(reversed(fields.items()))
    assert content_id(fields) == content_id(reordered) == content_id(json.loads(json.dumps(fields)))


@given(records, st.text(min_size=1))
def test_any_change_gives_another_id(fields: dict[str, object], name: str) -> None:
    assert content_id({**fields, name: "before"}) != content_id({**fields, name: "after"})


def test_the_final_assistant_turn_is_the_completion() -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    example = Example("x", {"messages": turns})
    assert example.completion == "4"
    assert example.prompt_messages == ({"role": "user", "content": "2+2?"},)
    assert example.text == "2+2?"


def test_messages_that_end_with_the_user_take_the_completion_field() -> None:
    turns = [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "2+2?"}]
    example = Example("x", {"messages": turns, "completion": "4"})
    assert example.prompt_messages == tuple(turns)
    assert example.completion == "4"
    assert Example("x", {"messages": turns}).completion is None


def test_properties_of_the_other_kinds() -> None:
    assert Example("x", {"text": "a", "label": "b"}).label == "b"
    assert Example("x", {"text": "a", "labels": []}).labels == ()
    assert Example("x", {"text": "a"}).labels is None
    assert Example("x", {"prompt": "p"}).text == "p"
    assert Example("x", {"prompt": "p"}).prompt_messages is None


def test_labels_are_collected_from_everything_said_of_them() -> None:
    examples = [
        Example("1", {"text": "a", "label": "z"}),
        Example("2", {"text": "a", "labels": ["y", "b"]}),
        Example("3", {"text": "a", "label": "z"}, probs={"z": 0.5, "m": 0.5}),
    ]
    assert collect_labels(examples, "classification") == ("m", "z")
    assert collect_labels(examples, "multilabel") == ("b", "m", "y", "z")


def test_a_column_with_another_kinds_name_is_a_field_like_any() -> None:
    examples = [Example("1", {"text": "a", "label": ["a"], "labels": ["b"]}), Example("2", {"labels": ["c"]})]
    assert collect_labels(examples, "multilabel") == ("b", "c")
    assert collect_labels([Example("1", {"text": "a", "label": "x", "labels": 5})], "classification") == ("x",)
    assert collect_labels(examples, "generation") == ()


@pytest.mark.parametrize("messages", [5, "hi", [5], [{"x": 1}], [{"role": "user"}], [{"role": "user", "content": []}]])
def test_messages_of_another_shape_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="messages") as caught:
        open_turns(messages)
    assert caught.value.param == "messages"
