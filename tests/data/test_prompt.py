from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.prompt import input_field, render_messages, render_text
from adapterhub.data.task import PromptSpec
from adapterhub.errors import InvalidRequest, UnsupportedRequest
from adapterhub.recipe import check_template

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


def test_without_a_template_the_text_stands_as_it_is() -> None:
    assert render_text(PromptSpec(), {"text": " a{b} "}) == " a{b} "
    assert render_text(PromptSpec(), {"prompt": "p"}) == "p"
    assert render_text(PromptSpec(), {"prompt": "p", "text": "t"}) == "t"
    assert render_text(PromptSpec(), {"prompt": "p", "text": "t"}, "prompt") == "p"


def test_a_template_fills_in_fields() -> None:
    spec = PromptSpec(template="{{{prompt}}} wants {asked} of {n}")
    fields = {"prompt": "{asked}", "asked": ["ü", "b"], "n": 2}
    assert render_text(spec, fields) == '{{asked}} wants ["ü", "b"] of 2'


@given(st.text(), st.text())
def test_values_are_never_read_as_templates(before: str, value: str) -> None:
    escaped = before.replace("{", "{{").replace("}", "}}")
    assert render_text(PromptSpec(template=f"{escaped}{{text}}|"), {"text": value}) == f"{before}{value}|"


@given(st.text("ab{}_0 .:!"))
def test_recipes_refuse_exactly_the_templates_that_cannot_be_filled(template: str) -> None:
    class Anything(dict[str, str]):
        def get(self, name: str, default: str | None = None) -> str:  # type: ignore[override]
            return "x"

        def __missing__(self, name: str) -> str:
            return "x"

    try:
        check_template(template)
    except ValueError:
        with pytest.raises(InvalidRequest, match="template is wrong"):
            render_text(PromptSpec(template=template), Anything())
    else:
        assert isinstance(render_text(PromptSpec(template=template), Anything()), str)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'asked' is missing") as caught:
        render_text(PromptSpec(template="{prompt} {asked}"), {"prompt": "p"})
    assert caught.value.param == "asked"
    with pytest.raises(InvalidRequest, match="'text' is missing"):
        render_text(PromptSpec(), {"label": "x"})


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(UnsupportedRequest, match="chat template"):
        render_text(PromptSpec(), {"messages": [USER]})


def test_a_prompt_becomes_one_user_turn_after_the_system_text() -> None:
    spec = PromptSpec("chat", system="Be brief.", template="Q: {prompt}")
    system = {"role": "system", "content": "Be brief."}
    assert render_messages(spec, {"prompt": "hi"}) == [system, {"role": "user", "content": "Q: hi"}]
    assert render_messages(spec, {"messages": [USER]}) == [system, USER]


def test_given_messages_keep_their_own_system_text_and_lose_the_answer() -> None:
    own = {"role": "system", "content": "Be long."}
    given_turns = [own, USER, ANSWER, USER, ANSWER]
    assert render_messages(PromptSpec("chat", system="Be brief."), {"messages": given_turns}) == given_turns[:-1]


def test_there_must_be_something_to_answer() -> None:
    for messages in ([], [ANSWER]):
        with pytest.raises(InvalidRequest, match="no turn to answer"):
            render_messages(PromptSpec("chat"), {"messages": messages})


def test_the_field_a_bare_text_stands_for() -> None:
    assert [input_field(kind) for kind in ("classification", "multilabel", "generation")] == ["text", "text", "prompt"]


def test_a_field_that_is_null_is_missing() -> None:
    with pytest.raises(InvalidRequest, match="'text' is missing"):
        render_text(PromptSpec(), {"text": None})
    with pytest.raises(InvalidRequest, match="'place' is missing"):
        render_text(PromptSpec(template="{text} {place}"), {"text": "a", "place": None})
