"""What answers must look like, asked by the official client and in plain JSON of the real engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from adapterhub.base.source import Base
from adapterhub.data.output import Output
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.server.output import ResponseFormat, StructuredOutputs
from adapterhub.server.service import Service

from .publishing import make_base, publish
from .running import Running, running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TURN: Any = [{"role": "user", "content": "two mugs"}]


class Mug(BaseModel):
    """As people define what they want of the openai client."""

    model_config = ConfigDict(extra="forbid")
    colour: Literal["red", "blue"]
    count: Literal[1, 2, 3] = Field(description="how many")


SCHEMA = Mug.model_json_schema()
FORMAT = {"type": "json_schema", "json_schema": {"name": "mug", "schema": SCHEMA, "strict": True, "description": "x"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def server(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("registry")
    registry = Registry(root / "registry")
    publish(registry, base, "writer", root)
    publish(registry, base, "mugs", root, seed=1, output=Output.json(SCHEMA))
    publish(registry, base, "broken", root, seed=2, output=Output("regex", "(a"))
    with AdapterHub(base, registry, threads=1) as hub, running(hub) as each:
        yield each


def is_mug(text: str) -> bool:
    try:
        return bool(Mug.model_validate_json(text))
    except ValidationError:
        return False


def texts(server: Running, path: str = CHAT, **body: Any) -> list[str]:
    asked = {"messages": TURN} if path == CHAT else {"prompt": "two mugs"}
    answer = server.post(path, {"model": "writer", "max_tokens": 190, **asked, **body})
    assert answer.status == 200, answer.body
    choices = answer.json["choices"]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    return [choice["message"]["content"] if path == CHAT else choice["text"] for choice in choices]


def test_the_official_client_parses_a_model(server: Running, base: Base) -> None:
    with server.openai() as client:
        for model in (base.name, "writer", "mugs"):
            parsed = client.chat.completions.parse(model=model, messages=TURN, response_format=Mug, max_tokens=190)
            assert isinstance(parsed.choices[0].message.parsed, Mug)
        with client.chat.completions.stream(
            model="writer", messages=TURN, response_format=Mug, max_tokens=190
        ) as stream:
            for _ in stream:
                pass
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Mug)


def test_too_few_tokens_cut_it(server: Running) -> None:
    with server.openai() as client, pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="writer", messages=TURN, response_format=Mug, max_tokens=4)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_both_routes_take_every_form(server: Running, path: str, base: Base) -> None:
    for model in (base.name, "writer"):
        (text,) = texts(server, path, model=model, response_format=FORMAT, seed=1)
        assert is_mug(text)
    (text,) = texts(server, path, structured_outputs={"json": SCHEMA})
    assert is_mug(text)
    (text,) = texts(server, path, structured_outputs={"choice": ["yes", "no"], "regex": None})
    assert text in ("yes", "no")
    (text,) = texts(server, path, structured_outputs={"regex": "[0-9]{2}"})
    assert text.isdecimal()


def test_any_object(server: Running) -> None:
    for asked in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        answer = server.post(CHAT, {"model": "writer", "messages": TURN, "max_tokens": 190, **asked}).json["choices"][0]
        assert answer["message"]["content"].startswith("{")
        if answer["finish_reason"] == "stop":
            assert isinstance(json.loads(answer["message"]["content"]), dict)


def test_a_tasks_own_rule_is_followed_by_default(server: Running) -> None:
    assert all(map(is_mug, texts(server, model="mugs")))
    (other,) = texts(server, model="mugs", structured_outputs={"choice": ["yes"]})
    assert other == "yes"
    body = {"model": "mugs", "messages": TURN, "max_tokens": 60, "response_format": {"type": "text"}}
    assert not is_mug(server.post(CHAT, body).json["choices"][0]["message"]["content"])
    raw = {"model": "mugs", "prompt": "two mugs", "max_tokens": 60}
    assert not is_mug(server.post(COMPLETIONS, raw).json["choices"][0]["text"])


def test_choices_seeds_logprobs_and_streams_go_with_it(server: Running) -> None:
    body = {"response_format": FORMAT, "n": 3, "seed": 7, "temperature": 1.5}
    several = texts(server, **body)
    assert all(map(is_mug, several))
    assert texts(server, **body) == several
    asked = {"model": "writer", "messages": TURN, "max_tokens": 190, **body}
    events = server.post(CHAT, {**asked, "stream": True}).events
    told = ["", "", ""]
    for event in events[:-1]:
        for choice in event["choices"]:
            told[choice["index"]] += choice["delta"].get("content") or ""
    assert told == several
    answer = server.post(CHAT, {**asked, "logprobs": True, "top_logprobs": 2}).json["choices"][0]
    tokens = answer["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens[:-1]) == several[0]
    assert all(token["logprob"] <= 0 for token in tokens)
    assert tokens[-1]["logprob"] == 0  # nothing but the end was left


def test_a_mixed_crowd_answers_as_each_alone(server: Running, base: Base) -> None:
    bodies = [
        {"model": model, "messages": TURN, "max_tokens": 50, "temperature": 0, **rule}
        for model in (base.name, "writer", "mugs")
        for rule in ({}, {"response_format": FORMAT}, {"structured_outputs": {"choice": ["yes", "no"]}})
    ]

    def say(body: dict[str, Any]) -> str:
        return str(server.post(CHAT, body).json["choices"][0]["message"]["content"])

    alone = list(map(say, bodies))
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(say, bodies)) == alone


@pytest.mark.parametrize(
    ("rule", "param", "said"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strng"}}}},
            "response_format",
            "Invalid type: strng",
        ),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs", "unclosed group"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_rule_that_cannot_be_followed_is_a_400(
    server: Running, rule: dict[str, Any], param: str, said: str, stream: bool
) -> None:
    for path, asked in ((CHAT, {"messages": TURN}), (COMPLETIONS, {"prompt": ["a", "b"]})):
        answer = server.post(path, {"model": "writer", "stream": stream, **asked, **rule})
        assert answer.status == 400
        assert (answer.error["param"], answer.error["code"]) == (param, "invalid_request")
        assert said in answer.error["message"]


def test_other_errors_keep_their_own_fields(server: Running) -> None:
    answer = server.post(CHAT, {"model": "mugs", "messages": TURN, "max_tokens": 9999})
    assert (answer.status, answer.error["param"]) == (400, "max_tokens")


def test_a_task_whose_own_rule_is_wrong_is_damaged(server: Running) -> None:
    answer = server.post(CHAT, {"model": "broken", "messages": TURN})
    assert (answer.status, answer.error["param"]) == (422, "model")


def test_one_keys_rules_never_take_all_threads() -> None:
    async def crowd() -> None:
        service, free = Service(), threading.Event()
        held = [asyncio.create_task(service.prepare(partial(free.wait, 30), "flood")) for _ in range(20)]
        try:
            # With every thread taken by the other key this would never come back.
            assert await asyncio.wait_for(service.prepare(lambda: "answered", "other"), 30) == "answered"
            assert await asyncio.wait_for(service.prepare(lambda: "answered"), 30) == "answered"
        finally:
            free.set()
        assert all(await asyncio.gather(*held))
        service.close()

    asyncio.run(crowd())


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ({"type": "text"}, Output.text()),
        ({"type": "json_object"}, Output.json({"type": "object"})),
        (FORMAT, Output.json(SCHEMA)),
    ],
)
def test_response_formats_are_read(given: Any, output: Output) -> None:
    assert TypeAdapter(ResponseFormat).validate_python(given) == output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("text", "response_format must be"),
        ({}, "response_format must be"),
        ({"type": ["text"]}, "response_format must be"),
        ({"type": "grammar"}, "text, json_object, json_schema"),
        ({"type": "text", "schema": {}}, "unknown field 'schema'"),
        ({"type": "json_schema"}, "json_schema must be"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "json_schema must be"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "sceme": 1}}, "unknown field 'sceme'"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "strict must be of type bool"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "name": 5}}, "name must be of type str"),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "\ud800"}}}, "half of a character"),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "x" * 70_000}}}, "at most 65536"),
    ],
)
def test_response_formats_of_another_shape_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(ResponseFormat).validate_python(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("x", "exactly one of json, choice, regex and json_object"),
        ({}, "exactly one of"),
        ({"json": {}, "regex": "a"}, "exactly one of"),
        ({"grammar": "root ::= x"}, "'grammar' is not supported here"),
        ({"json_object": False}, "'json_object' is not supported here"),
        ({"choice": []}, "there are 0 choices"),
        ({"choice": "yes"}, "choices are a list"),
        ({"regex": ""}, "not empty"),
        ({"json": "{}"}, "a JSON schema is an object"),
    ],
)
def test_structured_outputs_of_another_shape_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(StructuredOutputs).validate_python(given)
