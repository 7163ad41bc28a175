from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.data.tokens import check_length, encode_completion, encode_continuation, encode_input
from adapterhub.errors import BaseError, InvalidRequest, PromptTooLong, UnsupportedRequest
from tests.tiny import byte_tokenizer

PAD, START, END = 0, 1, 2
tokenizer = byte_tokenizer()


def spec(kind: Any, **prompt: Any) -> TaskSpec:
    return TaskSpec(kind, "sha256:0", 10, prompt=PromptSpec(**prompt))


def plain_ids(text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: "<|" not in text))
def test_bare_text_gets_no_end_and_completions_do(text: str) -> None:
    ids = encode_input(tokenizer, spec("classification"), {"text": text})
    assert tokenizer.decode(ids) == text
    assert END not in ids
    assert encode_completion(tokenizer, text) == [*ids, END]
    assert encode_input(tokenizer, spec("generation", style="plain"), {"prompt": text}) == ids


def test_input_carries_the_tokenizers_own_special_tokens_and_completions_none() -> None:
    encoder = byte_tokenizer()
    encoder._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", START), ("<|end|>", END)]
    )
    assert encode_input(encoder, spec("classification"), {"text": "ab"}) == [START, *plain_ids("ab"), END]
    assert encode_completion(encoder, "ab") == [*plain_ids("ab"), END]
    assert encode_continuation(encoder, " ab") == plain_ids(" ab")


@pytest.mark.parametrize("text", ["", "\ud800"])
def test_a_continuation_has_tokens_and_whole_characters(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_continuation(tokenizer, text)
    assert caught.value.param == "continuations"


def test_chat_runs_to_where_the_answer_begins() -> None:
    ids = encode_input(tokenizer, spec("generation", style="chat", system="s"), {"prompt": "hi"})
    expected = "<|start|>system\ns<|end|>\n<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert tokenizer.decode(ids) == expected
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "secret"}]
    told = encode_input(tokenizer, spec("generation", style="chat", system="s"), {"messages": turns})
    assert told == ids, "the gold answer must not be seen"


def test_the_tasks_own_chat_template_counts() -> None:
    own = spec("generation", style="chat", chat_template="{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    assert encode_input(tokenizer, own, {"prompt": "hi"}) == plain_ids("[hi]")


def test_a_chat_template_may_refuse() -> None:
    strict = spec("generation", style="chat", chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UnsupportedRequest, match="roles must alternate"):
        encode_input(tokenizer, strict, {"prompt": "hi"})


def test_classification_reads_the_text_and_generation_the_prompt() -> None:
    fields = {"text": "t", "prompt": "p"}
    assert encode_input(tokenizer, spec("multilabel"), fields) == plain_ids("t")
    assert encode_input(tokenizer, spec("generation"), fields) == plain_ids("p")


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing to read"):
        encode_input(tokenizer, spec("classification"), {"text": ""})


def test_a_base_without_an_end_cannot_learn_to_stop() -> None:
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(BaseError, match="no EOS token"):
        encode_completion(endless, "a")


def test_length_is_checked_against_the_task() -> None:
    check_length(10, spec("classification"))
    check_length([1] * 10, spec("classification"))
    for length in (11, [1] * 11):
        with pytest.raises(PromptTooLong, match=r"rows.jsonl:3: 11 tokens are more than the 10"):
            check_length(length, spec("classification"), "rows.jsonl:3")


def test_a_length_names_the_field_that_is_too_long() -> None:
    for kind, param in (("classification", "text"), ("generation", "prompt")):
        with pytest.raises(PromptTooLong) as caught:
            check_length(11, spec(kind))
        assert caught.value.param == param


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages + 1 }}", "{% if %}"])
def test_a_chat_template_that_breaks_is_a_refusal(template: str) -> None:
    with pytest.raises(UnsupportedRequest, match=r"chat template refuses the messages: ."):
        encode_input(tokenizer, spec("generation", style="chat", chat_template=template), {"prompt": "hi"})


@pytest.mark.parametrize(
    ("kind", "style", "fields", "param"),
    [
        ("classification", "plain", {"text": "a\udcff"}, "text"),
        ("generation", "plain", {"prompt": "a\udcff"}, "prompt"),
        ("generation", "chat", {"prompt": "a\udcff"}, "prompt"),
        ("generation", "chat", {"messages": [{"role": "user", "content": "a\udcff"}]}, "messages"),
    ],
)
def test_half_characters_are_refused(kind: str, style: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match=r"character 2 .* U\+DCFF") as caught:
        encode_input(tokenizer, spec(kind, style=style), fields)
    assert caught.value.param == param
