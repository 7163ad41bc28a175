"""Answers that keep a rule, through the Python API: the request's own, and the one of a task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs
import pytest

from adapterhub import AdapterHub
from adapterhub.base.source import Base
from adapterhub.data.output import Output
from adapterhub.errors import CorruptAdapter, InvalidRequest
from adapterhub.registry.store import Registry
from adapterhub.runtime.target import GenerationRequest
from tests.server.publishing import publish

SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["size", "count"],
    "additionalProperties": False,
}
JUDGE = jsonschema_rs.validator_for(SCHEMA)
TEXTS = ["hello", "two mugs", "nothing at all", "ü"]


@pytest.fixture(scope="module")
def registry(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    scratch = tmp_path_factory.mktemp("registry")
    found = Registry(scratch / "registry")
    publish(found, base, "writer", scratch)
    publish(found, base, "orders", scratch, seed=1, output=Output.json(SCHEMA))
    publish(found, base, "broken", scratch, seed=2, output=Output("json_schema", '{"type":"strng"}'))
    return found


@pytest.fixture(scope="module")
def hub(base: Base, registry: Registry) -> Iterator[AdapterHub]:
    with AdapterHub(base, registry) as found:
        yield found


def is_kept(text: str | None) -> bool:
    try:
        return bool(JUDGE.is_valid(json.loads(text or "")))
    except ValueError:
        return False


def test_a_tasks_rule_holds_for_every_answer(hub: AdapterHub) -> None:
    answers = [answer.completion for answer in hub.predict("orders", TEXTS, max_tokens=190)]
    assert all(map(is_kept, answers))
    assert not any(is_kept(answer.completion) for answer in hub.predict("writer", TEXTS, max_tokens=190))


def test_a_folder_that_is_not_published_keeps_it_too(hub: AdapterHub, registry: Registry) -> None:
    (answer,) = hub.predict_folder(registry.resolve("orders").path, TEXTS[:1], max_tokens=190)
    assert answer.completion == hub.predict("orders", TEXTS[:1], max_tokens=190)[0].completion


def test_a_request_may_say_otherwise(hub: AdapterHub) -> None:
    free = [answer.completion for answer in hub.predict("orders", TEXTS, max_tokens=190, output=Output.text())]
    assert not any(map(is_kept, free))
    (answer,) = hub.predict("orders", TEXTS[:1], output=Output.choices(["yes", "no"]))
    assert answer.completion in ("yes", "no")


def test_a_rule_for_the_bare_base(hub: AdapterHub, base: Base) -> None:
    for output in (Output.json(SCHEMA), Output.json({"type": "array", "items": {"type": "null"}, "maxItems": 2})):
        (answer,) = hub.predict(base.name, TEXTS[:1], output=output, max_tokens=190)
        assert jsonschema_rs.validator_for(json.loads(output.rule)).is_valid(json.loads(answer.completion or ""))
    request = GenerationRequest(text="x", output=Output.regex("[0-9]{3}"), temperature=1.0, seed=1)
    answer = hub.generate(hub.target(base.name), request).result()
    assert answer.text.isdecimal()
    assert len(answer.text) == 3
    assert answer.finish_reason == "stop"


def test_a_text_as_it_stands_is_no_input_of_the_task(hub: AdapterHub) -> None:
    """As its template is not applied, so its rule is not."""
    target = hub.target("orders")
    raw = hub.generate(target, GenerationRequest(text="hello", temperature=0, max_tokens=190)).result()
    assert not is_kept(raw.text)
    turn = GenerationRequest(messages=({"role": "user", "content": "hello"},), temperature=0, max_tokens=190)
    assert is_kept(hub.generate(target, turn).result().text)


def test_it_is_cut_where_the_tokens_end(hub: AdapterHub) -> None:
    request = GenerationRequest(fields={"prompt": "hello"}, temperature=0, max_tokens=5)
    answer = hub.generate(hub.target("orders"), request).result()
    assert answer.finish_reason == "length"
    assert answer.completion_tokens == 5


def test_rows_with_and_without_a_rule_answer_together_as_alone(hub: AdapterHub, base: Base) -> None:
    rules = [None, Output.text(), Output.json(SCHEMA), Output.choices(["yes", "no", "perhaps"]), Output.regex("a+b")]
    options = {"temperature": 0.7, "seed": 5, "max_tokens": 40}
    asked = [
        (hub.target(name), GenerationRequest(fields={"prompt": text}, output=rule, **options))
        for name in (base.name, "writer", "orders")
        for text in TEXTS[:2]
        for rule in rules
    ]
    alone = [hub.generate(*each).result().token_ids for each in asked]
    streams = [hub.generate(*each) for each in asked]
    assert [stream.result().token_ids for stream in streams] == alone


def test_a_wrong_rule_is_told_before_anything_runs(hub: AdapterHub, base: Base) -> None:
    request = GenerationRequest(text="x", output=Output.json({"type": "strng"}))
    with pytest.raises(InvalidRequest, match="Invalid type: strng") as raised:
        hub.generate(hub.target(base.name), request)
    assert raised.value.param == "output"


def test_a_task_whose_rule_is_wrong_says_so_when_it_is_loaded_or_asked(hub: AdapterHub) -> None:
    with pytest.raises(CorruptAdapter, match="'broken' has a rule for its output that is wrong"):
        hub.load(["orders", "broken"])
    with pytest.raises(CorruptAdapter, match="'broken' has a rule"):
        hub.predict("broken", TEXTS)
    (answer,) = hub.predict("broken", TEXTS[:1], output=Output.choices(["yes", "no"]))
    assert answer.completion in ("yes", "no")


def test_encoders_have_no_rules_to_keep(tmp_path: Path, registry: Registry) -> None:
    from adapterhub.base.source import open_base
    from adapterhub.errors import UnsupportedRequest
    from tests.tiny import make_tiny_base

    encoder = open_base(str(make_tiny_base(tmp_path / "bert", "bert")))
    with AdapterHub(encoder, registry) as hub, pytest.raises(UnsupportedRequest, match="encoder"):
        hub.predict(encoder.name, ["a"], output=Output.regex("a"))
