from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.task import KINDS, Kind, PromptSpec, TaskSpec
from adapterhub.errors import CorruptAdapter

prompts = st.builds(
    PromptSpec,
    style=st.sampled_from(["plain", "chat"]),
    system=st.none() | st.text(),
    template=st.none() | st.text(),
    chat_template=st.none() | st.text(),
)
specs = st.builds(
    TaskSpec,
    kind=st.sampled_from(KINDS),
    base_fingerprint=st.text(),
    max_length=st.integers(1),
    labels=st.lists(st.text()).map(tuple),
    prompt=prompts,
    pooling=st.sampled_from(["last", "pooler", "cls", None]),
    pad_token=st.none() | st.text(),
)


@given(specs)
def test_what_is_written_is_read_back_to_the_byte(spec: TaskSpec) -> None:
    again = TaskSpec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()


@given(specs)
def test_the_order_of_labels_is_part_of_the_task(spec: TaskSpec) -> None:
    two = replace(spec, labels=("a", "b"))
    assert two.to_json() != replace(spec, labels=("b", "a")).to_json()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2; this program reads format 1"),
        ({"kind": "ranking"}, "kind 'ranking'; expected one of classification"),
        ({"max_length": "long"}, "not a task description"),
        ({"prompt": {"tone": "kind"}}, "not a task description"),
        ({"labels": None}, "not a task description"),
    ],
)
def test_other_files_are_refused(change: dict[str, Any], said: str) -> None:
    record = json.loads(TaskSpec("classification", "sha256:0", 5, labels=("a", "b")).to_json())
    with pytest.raises(CorruptAdapter, match=said):
        TaskSpec.from_json(json.dumps({**record, **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", "[" * 100_000])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(CorruptAdapter, match="not a task description"):
        TaskSpec.from_json(text)


def test_kinds_are_those_of_the_type() -> None:
    assert get_args(Kind) == KINDS
