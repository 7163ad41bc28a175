from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data import task
from adapterhub.data.output import Output
from adapterhub.data.task import (
    KINDS,
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    Calibration,
    Kind,
    PromptSpec,
    TaskSpec,
)
from adapterhub.errors import CorruptAdapter
from adapterhub.recipe import values

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
temperatures = st.floats(LEAST_TEMPERATURE, MOST_TEMPERATURE)
thresholds = st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True)
calibrated = specs.flatmap(
    lambda spec: st.builds(
        replace,
        st.just(replace(spec, kind="multilabel" if spec.kind == "generation" else spec.kind)),
        calibration=st.builds(Calibration, temperatures, thresholds if spec.kind == "classification" else st.none()),
    )
)


written = st.builds(
    replace,
    specs.map(lambda spec: replace(spec, kind="generation")),
    output=st.builds(Output.json, st.dictionaries(st.text(), st.text() | st.integers(), max_size=3))
    | st.builds(Output.choices, st.lists(st.text(min_size=1), min_size=1, max_size=3))
    | st.builds(Output.regex, st.text(min_size=1)),
)


@given(specs | calibrated | written)
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
        ({"format": 4}, "format 4; this program reads formats 1 to 3"),
        ({"format": 2}, "not a task description"),
        ({"format": 3}, "a classification task writes none"),
        ({"calibration": {"temperature": 2.0, "reject_below": None}}, "format 1 and a calibration; that is format 2"),
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


def test_without_calibration_the_bytes_are_what_they_were() -> None:
    """The digests of published versions are over these bytes."""
    spec = TaskSpec("classification", "sha256:0", 5, labels=("a", "b"), pooling="last")
    assert hashlib.sha256(spec.to_json().encode()).hexdigest() == (
        "9273a52440961260b292060854a30d00d767f248e36b9b8c67f3b358b10c4e95"
    )
    assert json.loads(spec.to_json())["format"] == 1


def test_with_calibration_it_is_a_format_that_older_programs_refuse() -> None:
    spec = TaskSpec("classification", "sha256:0", 5, labels=("a", "b"), calibration=Calibration(1.5, 0.25))
    record = json.loads(spec.to_json())
    assert record["format"] == 2
    assert record["calibration"] == {"temperature": 1.5, "reject_below": 0.25}


def test_with_a_rule_for_its_output_it_is_a_format_that_older_programs_refuse() -> None:
    spec = TaskSpec("generation", "sha256:0", 5, output=Output.json({"type": "object", "properties": {}}))
    record = json.loads(spec.to_json())
    assert record["format"] == 3
    assert record["output"] == {"json_schema": '{"type":"object","properties":{}}'}
    assert "calibration" not in record


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 1}, "format 1 and a rule for its output; that is format 3"),
        ({"calibration": {"temperature": 2}}, "format 3 and a calibration"),
        ({"output": {"grammar": "x"}}, "unknown rule 'grammar'"),
        ({"output": {"text": ""}}, "unknown rule 'text'"),
        ({"output": {"json_schema": {"type": "object"}}}, "unknown rule"),
        ({"output": {"choices": "[]"}}, "0 choices"),
        ({"output": {"json_schema": "{"}}, "not a task description"),
        ({"output": {}}, "not a task description"),
        ({"output": None}, "not a task description"),
        ({"output": "text"}, "not a task description"),
    ],
)
def test_a_rule_that_is_none_is_refused(change: dict[str, Any], said: str) -> None:
    record = json.loads(TaskSpec("generation", "sha256:0", 5, output=Output.regex("a+")).to_json())
    with pytest.raises(CorruptAdapter, match=said):
        TaskSpec.from_json(json.dumps({**record, **change}))


HOSTILE = [0, -1, float("nan"), float("inf"), "x", "1", None, True, [2], {}, 1e308, 10**400, 0.049, 20.1]


@pytest.mark.parametrize("temperature", HOSTILE)
def test_a_temperature_that_is_none_is_refused(temperature: Any) -> None:
    with pytest.raises(CorruptAdapter, match=r"calibration\.temperature .*; expected a number from 0\.05 to 20\.0"):
        TaskSpec.from_json(calibrated_text({"temperature": temperature, "reject_below": None}))


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 1.5, float("nan"), "x", True, [0.5], 10**400])
def test_a_threshold_that_is_no_probability_is_refused(threshold: Any) -> None:
    with pytest.raises(CorruptAdapter, match=r"calibration\.reject_below .*; expected a number above 0 and below 1"):
        TaskSpec.from_json(calibrated_text({"temperature": 1, "reject_below": threshold}))


@pytest.mark.parametrize("calibration", [None, 1.5, [], {}, {"temperature": 2.0, "bias": 1.0}, "warm"])
def test_a_calibration_of_another_shape_is_refused(calibration: Any) -> None:
    with pytest.raises(CorruptAdapter, match="not a task description"):
        TaskSpec.from_json(calibrated_text(calibration))


def test_each_kind_has_the_calibration_it_can_have() -> None:
    warm, strict = {"temperature": 2, "reject_below": None}, {"temperature": 2, "reject_below": 0.5}
    assert TaskSpec.from_json(calibrated_text(warm, "multilabel")).calibration == Calibration(2.0)
    for kind, calibration in (("multilabel", strict), ("generation", warm)):
        with pytest.raises(CorruptAdapter, match=kind):
            TaskSpec.from_json(calibrated_text(calibration, kind))


def test_recipes_and_tasks_have_the_same_bounds() -> None:
    for name in ("LEAST_TEMPERATURE", "MOST_TEMPERATURE"):
        assert getattr(values, name) == getattr(task, name)


def calibrated_text(calibration: Any, kind: str = "classification") -> str:
    spec = TaskSpec("classification", "sha256:0", 5, labels=("a", "b"))
    return json.dumps({**json.loads(spec.to_json()), "kind": kind, "format": 2, "calibration": calibration})


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", "[" * 100_000])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(CorruptAdapter, match="not a task description"):
        TaskSpec.from_json(text)


def test_kinds_are_those_of_the_type() -> None:
    assert get_args(Kind) == KINDS
