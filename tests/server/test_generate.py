"""Completions and chat as the official client sees them."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from adapterhub.runtime.stream import Chunk, TokenLogprob
from adapterhub.server.answers import ChatAnswer, CompletionAnswer

from .fake import BASE, FINGERPRINT, answer_text, digest_of
from .running import Running


def expected(model: str, prompt: str, count: int) -> str:
    digest = None if model == BASE else digest_of(model)
    return "".join(itertools.islice(answer_text(digest, prompt), count))


def test_completion_is_the_adapters_own(server: Running) -> None:
    with server.openai() as client:
        raw = client.completions.with_raw_response.create(model="orders", prompt="Hi", max_tokens=5, temperature=0)
    answer = raw.parse()
    assert answer.choices[0].text == expected("orders", "Hi", 5)
    assert answer.choices[0].text != expected("notes", "Hi", 5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    assert answer.model == "orders"
    assert answer.system_fingerprint == "fp_" + FINGERPRINT[7:23]
    assert answer.usage is not None
    assert answer.usage.to_dict() == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert raw.headers["x-adapterhub-digest"] == digest_of("orders")


def test_base_answers_under_its_own_name_and_without_digest(server: Running) -> None:
    answer = server.post("/v1/completions", {"model": BASE, "prompt": "Hi", "temperature": 0, "max_tokens": 4})
    assert answer.json["choices"][0]["text"] == expected(BASE, "Hi", 4)
    assert answer.headers["x-adapterhub-digest"] is None


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
)
def test_prompt_forms(server: Running, prompt: Any, texts: list[str]) -> None:
    with server.openai() as client:
        answer = client.completions.create(model="orders", prompt=prompt, max_tokens=3, temperature=0)
    assert [choice.text for choice in answer.choices] == [expected("orders", text, 3) for text in texts]
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, texts))
    assert answer.usage.completion_tokens == 3 * len(texts)


def test_several_prompts_stream_together(server: Running) -> None:
    texts = {0: "", 1: ""}
    with server.openai() as client:
        stream = client.completions.create(
            model="orders", prompt=["ab", "c"], max_tokens=6, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: expected("orders", "ab", 6), 1: expected("orders", "c", 6)}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.to_dict() == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}


def test_every_option_reaches_the_engine(server: Running) -> None:
    options = {
        "max_tokens": 3, "min_tokens": 2, "ignore_eos": True, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 11,
        "stop": ["x", "yz"], "logprobs": 2,
    }  # fmt: skip
    assert server.post("/v1/completions", {"model": "orders", "prompt": "Hi", **options}).status == 200
    asked = server.hub.requests[-1]
    assert {key: getattr(asked, key) for key in options} == {**options, "stop": ("x", "yz")}


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"stop": "x"}, "stop", ("x",)),
        ({"stop": None}, "stop", ()),
        ({"temperature": None}, "temperature", 0.0),
        ({"temperature": 1}, "temperature", 1.0),
        ({"max_tokens": None}, "max_tokens", None),
        ({"logprobs": 0}, "logprobs", 0),
    ],
)
def test_forms_of_options(server: Running, given: dict[str, Any], field: str, value: Any) -> None:
    assert server.post("/v1/completions", {"model": "orders", "prompt": "Hi", **given}).status == 200
    assert getattr(server.hub.requests[-1], field) == value


def test_base_samples_by_default_and_tasks_answer_greedily(server: Running) -> None:
    for model, temperature in ((BASE, 1.0), ("orders", 0.0)):
        server.post("/v1/completions", {"model": model, "prompt": "Hi"})
        assert server.hub.requests[-1].temperature == temperature


def test_seeds_repeat(server: Running) -> None:
    def ask(seed: int) -> str:
        body = {"model": "orders", "prompt": "Hi", "temperature": 1, "seed": seed, "max_tokens": 20}
        return str(server.post("/v1/completions", body).json["choices"][0]["text"])

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_stop_ends_the_text_before_it(server: Running) -> None:
    text = expected("orders", "Hi", 50)
    stop = text[10]
    body = {"model": "orders", "prompt": "Hi", "max_tokens": 50, "stop": stop}
    choice = server.post("/v1/completions", body).json["choices"][0]
    assert choice["text"] == text.partition(stop)[0]
    assert choice["finish_reason"] == "stop"


def test_completion_logprobs(server: Running) -> None:
    with server.openai() as client:
        answer = client.completions.create(model="orders", prompt="Hi", max_tokens=4, logprobs=3, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list(answer.choices[0].text)
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.text_offset == [0, 1, 2, 3]
    likeliest = {"a": -9999.0, "b": -2.0, "c": -3.0}
    assert logprobs.top_logprobs == [{**likeliest, token: -0.5} for token in logprobs.tokens]
    assert max(map(len, logprobs.top_logprobs)) == 4  # among them is one sampled from outside the top three


def broken(text: str, raw: bytes | None, piece: str, *top: tuple[str, int, float]) -> Chunk:
    return Chunk(piece, (1,), (TokenLogprob(text, 1, -0.5, top, raw),), None, 1, 1)


def test_logprobs_of_tokens_that_are_parts_of_a_character() -> None:
    chunks = [
        broken("a", b"a", "a"),
        broken("\ufffd", b"\xc3", "", ("\ufffd", 2, -0.25), ("b", 3, -1.0)),
        broken("\ufffd", b"\xa9", "é"),
        broken("\ufffd", None, ""),
        broken("<end>", b"<end>", ""),
    ]
    chat = ChatAnswer("m", None, 1, logprobs=True)
    completion = CompletionAnswer("m", None, 1, logprobs=True)
    told: list[int] = []
    for chunk in chunks:
        chat.choices[0].add(chunk)
        (event,) = completion.events(0, chunk, include_usage=False).split(b"\n\n")[:-1]
        told += json.loads(event.removeprefix(b"data: "))["choices"][0]["logprobs"]["text_offset"]
    content = chat.whole()["choices"][0]["logprobs"]["content"]
    assert [token["bytes"] for token in content] == [[97], [0xC3], [0xA9], None, list(b"<end>")]
    assert [top["bytes"] for top in content[1]["top_logprobs"]] == [None, [98]]
    (choice,) = completion.whole()["choices"]
    assert choice["text"] == "aé"
    assert choice["logprobs"]["text_offset"] == told == [0, 1, 1, 2, 2]
    assert choice["logprobs"]["top_logprobs"][1] == {"\ufffd": -0.5, "b": -1.0}


def test_streamed_logprobs_are_those_of_the_whole(server: Running) -> None:
    body = {"model": "orders", "prompt": "Hi", "max_tokens": 4, "logprobs": 1}
    whole = server.post("/v1/completions", body).json["choices"][0]["logprobs"]
    events = server.post("/v1/completions", {**body, "stream": True}).events[:-1]
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert {key: [item for part in parts for item in part[key]] for key in whole} == whole


def test_chat(server: Running) -> None:
    with server.openai() as client:
        raw = client.chat.completions.with_raw_response.create(
            model=BASE,
            messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
            max_completion_tokens=5,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
        )
    answer = raw.parse()
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == expected(BASE, "system:Be kind.|user:Hi", 5)
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [token.token for token in choice.logprobs.content] == list(choice.message.content)
    assert choice.logprobs.content[0].bytes == list(choice.message.content[0].encode())
    assert [top.logprob for top in choice.logprobs.content[0].top_logprobs] == [-9999.0, -2.0]
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")


def test_chat_stream_gives_the_text_of_the_whole(server: Running) -> None:
    asked: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    with server.openai() as client:
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(told) == whole.choices[0].message.content
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_ends_with_done_and_has_no_usage_unasked(server: Running) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.events[-1] == "[DONE]"
    assert all("usage" not in event for event in answer.events[:-1])


def test_a_single_user_turn_is_a_tasks_input(server: Running) -> None:
    body = {"model": "notes", "messages": [{"role": "user", "content": "Hi"}], "template_fields": {"shop": "Elm"}}
    assert server.post("/v1/chat/completions", body).status == 200
    assert server.hub.requests[-1].fields == {"prompt": "Hi", "text": "Hi", "shop": "Elm"}
    assert server.hub.requests[-1].messages is None


@pytest.mark.parametrize(
    ("name", "value"), [("messages", 5), ("prompt", "another turn"), ("text", "another turn"), ("messages", [])]
)
def test_template_fields_cannot_speak_over_the_user(server: Running, name: str, value: Any) -> None:
    before = len(server.hub.requests)
    body = {"model": "notes", "messages": [{"role": "user", "content": "Hi"}], "template_fields": {name: value}}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.error["param"] == f"template_fields.{name}"
    assert repr(name) in answer.error["message"]
    assert len(server.hub.requests) == before


def test_an_assistant_turn_cannot_be_continued(server: Running) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Dear"}]
    for model in (BASE, "orders"):
        answer = server.post("/v1/chat/completions", {"model": model, "messages": turns})
        assert answer.status == 400
        assert answer.error["param"] == "messages"
        assert "not supported" in answer.error["message"]


def test_a_conversation_goes_as_it_is(server: Running) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert server.post("/v1/chat/completions", {"model": "orders", "messages": turns}).status == 200
    assert server.hub.requests[-1].messages == tuple(turns)
    answer = server.post("/v1/chat/completions", {"model": "orders", "messages": turns, "template_fields": {"a": 1}})
    assert answer.status == 400
    assert answer.error["param"] == "template_fields"


def test_an_answer_can_be_sent_back(server: Running) -> None:
    with server.openai() as client:
        first = client.chat.completions.create(model="orders", messages=[{"role": "user", "content": "Hi"}])
        message: Any = first.choices[0].message
        client.chat.completions.create(
            model="orders",
            messages=[{"role": "developer", "content": "Be brief."}, message, {"role": "user", "content": [
                {"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]}],
        )  # fmt: skip
    turns = server.hub.requests[-1].messages
    assert turns[0] == {"role": "system", "content": "Be brief."}
    assert turns[2] == {"role": "user", "content": "And now?"}


def test_many_at_once_each_get_their_own(server: Running) -> None:
    def ask(number: int) -> bool:
        model = ("orders", "notes", BASE)[number % 3]
        body = {"model": model, "prompt": f"p{number}", "max_tokens": 12, "temperature": 0, "stream": number % 2 == 0}
        answer = server.post("/v1/completions", body)
        if body["stream"]:
            text = "".join(event["choices"][0]["text"] for event in answer.events[:-1])
        else:
            text = answer.json["choices"][0]["text"]
        return bool(text == expected(model, f"p{number}", 12))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(48)))


def test_blocking_calls_never_run_on_the_event_loop(server: Running) -> None:
    server.post("/v1/completions", {"model": "orders", "prompt": "Hi"})
    server.post("/v1/classify", {"model": "tone", "input": "Hi"})
    assert server.hub.threads
    assert all(name.startswith(("lookup", "compute")) for name in server.hub.threads)


def test_several_choices_a_prompt(server: Running) -> None:
    body = {"model": "orders", "prompt": ["ab", "cde"], "n": 3, "temperature": 1, "seed": 2**63 - 2, "max_tokens": 4}
    whole = server.post("/v1/completions", body).json
    assert [choice["index"] for choice in whole["choices"]] == list(range(6))
    assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 24, "total_tokens": 29}
    seeds = [request.seed for request in server.hub.requests[-6:]]
    assert seeds == [2**63 - 2, 2**63 - 1, -(2**63)] * 2
    texts = [choice["text"] for choice in whole["choices"]]
    assert len(set(texts)) > 2
    single = server.post("/v1/completions", {**body, "prompt": "cde", "n": 1}).json["choices"][0]["text"]
    assert single == texts[3]


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_of_a_chat(server: Running, stream: bool) -> None:
    asked = {"model": "orders", "messages": [{"role": "user", "content": "Hi"}], "n": 2, "max_tokens": 5}
    with server.openai() as client:
        if not stream:
            answer = client.chat.completions.create(**asked)
            assert [choice.index for choice in answer.choices] == [0, 1]
            assert answer.choices[0].message.content == answer.choices[1].message.content  # greedy
            return
        texts, last = ["", ""], None
        for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
            last = chunk
        assert texts[0] == texts[1] != ""
        assert last.usage.completion_tokens == 10
