"""What is refused, and that every refusal has OpenAI's shape."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapterhub.errors import AdapterHubError, all_errors
from adapterhub.server.errors import describe, respond
from adapterhub.server.limits import ServerLimits
from adapterhub.server.schemas import ChatBody, ClassifyBody, CompletionBody

from .fake import BASE
from .running import Running

MAX_BODY_BYTES = ServerLimits().body_bytes
COMPLETION = {"model": "orders", "prompt": "Hi"}
CHAT = {"model": "orders", "messages": [{"role": "user", "content": "Hi"}]}
UNSUPPORTED = "unsupported_request"
INVALID = "invalid_request"


@pytest.mark.parametrize("error", list(all_errors()), ids=lambda error: error.__name__)
def test_every_error_of_ours_has_its_status_and_code(error: type[AdapterHubError]) -> None:
    answer = respond(error("what was wrong"))
    body = json.loads(bytes(answer.body))["error"]
    assert answer.status_code == error.status
    assert 400 <= error.status < 600
    assert body["code"] == error.code
    assert body["message"] == "what was wrong"
    kinds = {403: "permission_error", 429: "rate_limit_error"}
    assert body["type"] == ("server_error" if error.status >= 500 else kinds.get(error.status, "invalid_request_error"))
    assert answer.headers.get("retry-after") == ("1" if error.status in (429, 503) else None)


def test_an_error_not_of_ours_tells_nothing() -> None:
    status, body = describe(ValueError("secret"))
    assert status == 500
    assert "secret" not in json.dumps(body)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"n": 0}, "n", INVALID),
        ({"n": 129}, "n", INVALID),
        ({"n": 65, "prompt": ["a", "b"]}, "n", INVALID),
        ({"best_of": 3}, "best_of", UNSUPPORTED),
        ({"echo": True}, "echo", UNSUPPORTED),
        ({"suffix": "end"}, "suffix", UNSUPPORTED),
        ({"logit_bias": {"5": 1}}, "logit_bias", UNSUPPORTED),
        ({"presence_penalty": 0.5}, "presence_penalty", UNSUPPORTED),
        ({"store": True}, "store", UNSUPPORTED),
        ({"temprature": 0.5}, "temprature", INVALID),
        ({"temperature": 3}, "temperature", INVALID),
        ({"temperature": "0.5"}, "temperature", INVALID),
        ({"top_p": 0}, "top_p", INVALID),
        ({"top_k": -2}, "top_k", INVALID),
        ({"max_tokens": 0}, "max_tokens", INVALID),
        ({"max_tokens": 2.5}, "max_tokens", INVALID),
        ({"max_tokens": True}, "max_tokens", INVALID),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", INVALID),
        ({"seed": 2**64}, "seed", INVALID),
        ({"stop": [""]}, "stop", INVALID),
        ({"stop": [1]}, "stop", INVALID),
        ({"stop": ["x"] * 33}, "stop", INVALID),
        ({"logprobs": True}, "logprobs", INVALID),
        ({"logprobs": 21}, "logprobs", INVALID),
        ({"stream_options": {"include_usage": True}}, "stream_options", INVALID),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", INVALID),
        ({"prompt": []}, "prompt", INVALID),
        ({"prompt": [[]]}, "prompt", INVALID),
        ({"prompt": ["a", 1]}, "prompt", INVALID),
        ({"prompt": [True]}, "prompt", INVALID),
        ({"prompt": [-1]}, "prompt", INVALID),
        ({"prompt": ["a"] * 129}, "prompt", INVALID),
        ({"prompt": None}, "prompt", INVALID),
        ({"model": None}, "model", INVALID),
        ({"model": 3}, "model", INVALID),
    ],
)
def test_completion_fields(server: Running, change: dict[str, Any], param: str, code: str) -> None:
    answer = server.post("/v1/completions", {**COMPLETION, **change})
    assert answer.status == 400
    assert (answer.error["param"], answer.error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools", UNSUPPORTED),
        ({"response_format": {"type": "json"}}, "response_format", INVALID),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", INVALID),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice", INVALID),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            "response_format",
            INVALID,
        ),
        ({"modalities": ["text", "audio"]}, "modalities", UNSUPPORTED),
        ({"messages": []}, "messages", INVALID),
        ({"logprobs": 1}, "logprobs", INVALID),
        ({"top_logprobs": True, "logprobs": True}, "top_logprobs", INVALID),
        ({"continue_final_message": True}, "continue_final_message", UNSUPPORTED),
        ({"template_fields": {"a": float("nan")}}, "template_fields", INVALID),
        ({"messages": "Hi"}, "messages", INVALID),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", UNSUPPORTED),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages.0.role", INVALID),
        ({"messages": [{"role": "user"}]}, "messages.0.content", INVALID),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages.0.name", UNSUPPORTED),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content",
            UNSUPPORTED,
        ),
        ({"top_logprobs": 2}, "top_logprobs", INVALID),
        ({"logprobs": 2}, "logprobs", INVALID),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", INVALID),
        ({"template_fields": [1]}, "template_fields", INVALID),
        ({"model": BASE, "template_fields": {"a": 1}}, "template_fields", UNSUPPORTED),
    ],
)
def test_chat_fields(server: Running, change: dict[str, Any], param: str, code: str) -> None:
    answer = server.post("/v1/chat/completions", {**CHAT, **change})
    assert answer.status == 400
    assert (answer.error["param"], answer.error["code"]) == (param, code)


def test_neutral_and_harmless_fields_are_accepted(server: Running) -> None:
    with server.openai() as client:
        answer = client.chat.completions.create(
            model="orders",
            messages=[{"role": "user", "content": "Hi"}],
            n=1,
            user="ann",
            metadata={"a": "b"},
            store=False,
            tools=[],
            logit_bias={},
            presence_penalty=0,
            frequency_penalty=0.0,
            response_format={"type": "text"},
            parallel_tool_calls=False,
        )
        assert answer.model == "orders"
        assert answer.choices[0].finish_reason is not None
        continued = client.completions.create(model="orders", prompt="Hi", best_of=1, echo=False, suffix=None)
        assert continued.choices[0].finish_reason is not None


def test_an_unknown_field_is_told_its_nearest(server: Running) -> None:
    answer = server.post("/v1/completions", {**COMPLETION, "temprature": 1})
    assert "did you mean 'temperature'" in answer.error["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"", "empty"),
        (b"[]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_bodies_that_are_no_object(server: Running, body: bytes, said: str) -> None:
    answer = server.post("/v1/completions", body)
    assert answer.status == 400
    assert said in answer.error["message"]
    assert answer.error["code"] == "invalid_json"


def test_a_body_sent_as_a_form_is_told_the_header(server: Running) -> None:
    body = json.dumps(COMPLETION).encode()
    answer = server.post("/v1/completions", body, {"content-type": "application/x-www-form-urlencoded"})
    assert answer.status == 400
    assert "Content-Type: application/json" in answer.error["message"]


@pytest.mark.parametrize("depth", [40, 200, 900, 5000, 100_000])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", b'{"model":"orders","prompt":%s}'),
        ("/v1/completions", b'{"model":"orders","prompt":"Hi","logit_bias":%s}'),
        ("/v1/chat/completions", b'{"model":"orders","messages":%s}'),
        ("/v1/chat/completions", json.dumps(CHAT)[:-1].encode() + b',"template_fields":{"shop":%s}}'),
        ("/v1/classify", b'{"model":"tone","input":%s}'),
        ("/v1/classify", b'{"model":"tone","input":{"text":%s}}'),
    ],
)  # fmt: skip
def test_nesting_without_end(server: Running, path: str, body: bytes, depth: int) -> None:
    answer = server.post(path, body % (b"[" * depth + b"]" * depth))
    assert answer.status == 400
    assert len(answer.error["message"]) < 300


@pytest.mark.parametrize("field", ["max_tokens", "min_tokens", "top_k", "seed"])
@pytest.mark.parametrize("value", [2**63, 10**3000, -(10**3000), 1e300])
def test_numbers_no_machine_holds(server: Running, field: str, value: float) -> None:
    answer = server.post("/v1/completions", {**COMPLETION, field: value})
    assert answer.status == 400
    assert answer.error["param"] == field
    assert len(answer.error["message"]) < 300


def test_a_token_id_no_machine_holds(server: Running) -> None:
    answer = server.post("/v1/completions", {"model": "orders", "prompt": [10**3000]})
    assert answer.status == 400
    assert len(answer.error["message"]) < 300


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_numbers_that_json_does_not_have(server: Running, number: bytes) -> None:
    answer = server.post("/v1/completions", b'{"model":"orders","prompt":"Hi","temperature":' + number + b"}")
    assert answer.status == 400
    assert answer.error["param"] == "temperature"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "orders", "prompt": "\ud800"}),
        ("/v1/completions", {"model": "\ud800", "prompt": "Hi"}),
        ("/v1/completions", {**COMPLETION, "stop": "\ud800"}),
        ("/v1/completions", {**COMPLETION, "\ud800": 1}),
        ("/v1/chat/completions", {"model": "orders", "messages": [{"role": "user", "content": "\ud800"}]}),
        ("/v1/chat/completions", {**CHAT, "template_fields": {"a": ["\udfff"]}}),
        ("/v1/classify", {"model": "tone", "input": "\ud800"}),
        ("/v1/classify", {"model": "tone", "input": {"text": "\ud800"}}),
    ],
)
def test_lone_surrogates(server: Running, path: str, body: Any) -> None:
    assert server.post(path, body).status == 400
    assert server.post(path, body).error["code"] == INVALID


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {**COMPLETION, "model": "ordres"}),
        ("/v1/chat/completions", {**CHAT, "model": "../../etc/passwd"}),
        ("/v1/classify", {"model": "gone@9", "input": "Hi"}),
    ],
)
def test_an_unknown_model_is_404_and_never_the_base(server: Running, path: str, body: Any) -> None:
    before = len(server.hub.requests)
    answer = server.post(path, body)
    assert answer.status == 404
    assert (answer.error["code"], answer.error["param"]) == ("model_not_found", "model")
    assert body["model"] in answer.error["message"]
    assert len(server.hub.requests) == before


def test_the_client_knows_our_refusals(server: Running) -> None:
    with server.openai() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="nothing", prompt="Hi")
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(model="orders", prompt="x" * 2000)
        with pytest.raises(openai.UnprocessableEntityError):
            client.completions.create(model="broken", prompt="Hi")
    assert missing.value.code == "model_not_found"
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_token_has_its_own_status(server: Running, stream: bool) -> None:
    answer = server.post("/v1/completions", {"model": "orders", "prompt": "boom", "stream": stream})
    assert answer.status == 422
    assert answer.error["code"] == "corrupt_adapter"


def test_one_refused_prompt_cancels_its_fellows(server: Running) -> None:
    answer = server.post("/v1/completions", {"model": "orders", "prompt": ["wait a", "x" * 2000]})
    assert answer.status == 400
    assert server.hub.streams[-1].cancelled.wait(10)


def test_kinds_do_not_mix(server: Running) -> None:
    answers = [
        server.post("/v1/classify", {"model": "orders", "input": "Hi"}),
        server.post("/v1/classify", {"model": BASE, "input": "Hi"}),
        server.post("/v1/completions", {"model": "tone", "prompt": "Hi"}),
        server.post("/v1/chat/completions", {**CHAT, "model": "tags"}),
    ]
    for answer in answers:
        assert answer.status == 400
        assert (answer.error["code"], answer.error["param"]) == (UNSUPPORTED, "model")
    assert "/v1/classify" in answers[2].error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405), ("PUT", "/health", 405)],
)
def test_routes_and_methods(server: Running, method: str, path: str, status: int) -> None:
    answer = server.ask(method, path)
    assert answer.status == status
    assert path in answer.error["message"]
    assert answer.headers["x-request-id"]


def test_what_nobody_foresaw_is_a_500_without_internals(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    answer = server.post("/v1/completions", {**COMPLETION, "model": "crash"}, {"x-request-id": "my-id"})
    assert answer.status == 500
    assert "secret" not in answer.body.decode()
    assert answer.headers["x-request-id"] == "my-id"
    assert any("my-id" in record.getMessage() and record.exc_info for record in caplog.records)
    assert server.post("/v1/completions", COMPLETION).status == 200


def test_a_body_too_large(server: Running) -> None:
    answer = server.post("/v1/completions", {**COMPLETION, "prompt": "x" * MAX_BODY_BYTES})
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"


def test_a_body_too_large_that_does_not_say_its_length(server: Running) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(head)
        for _ in range(3 * MAX_BODY_BYTES // 0x10000):
            raw.sendall(chunk)
        raw.sendall(b"0\r\n\r\n")
        assert b" 413 " in raw.recv(65536)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*CompletionBody.model_fields, *ChatBody.model_fields, *ClassifyBody.model_fields, "n", "tools"])


@given(st.dictionaries(KEYS | st.text(max_size=4), JSON, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_object_is_read_or_refused(body: dict[str, Any]) -> None:
    for schema in (CompletionBody, ChatBody, ClassifyBody):
        with contextlib.suppress(ValidationError):
            read = schema.model_validate({"model": "orders", "prompt": "Hi", **body})
            assert read.model == body.get("model", "orders")


def test_whole_numbers_are_integers_however_they_are_written(server: Running) -> None:
    written = (
        b'{"model": "orders", "prompt": [72.0, 105], "max_tokens": 3.0, "n": 2e0, "temperature": 0.0, "echo": false}'
    )
    answer = server.post("/v1/completions", written)
    assert answer.status == 200
    plain = {"model": "orders", "prompt": [72, 105], "max_tokens": 3, "n": 2, "temperature": 0}
    assert answer.json["choices"] == server.post("/v1/completions", plain).json["choices"]
    zero = server.post("/v1/completions", {**COMPLETION, "echo": 0})
    assert (zero.status, zero.error["param"]) == (400, "echo")
