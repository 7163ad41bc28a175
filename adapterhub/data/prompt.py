"""How a record's fields become the text or the messages a base reads: the same in training and in serving."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from adapterhub.errors import DataError, InvalidRequest, UnsupportedRequest
from adapterhub.recipe import TEMPLATE_PART, Kind, check_template

from .example import Example, open_turns
from .task import PromptSpec, task_kind

InputField = Literal["text", "prompt"]


def input_field(kind: Kind) -> InputField:
    """Return the field that a bare text stands for: `prompt` in generation, else `text`."""
    return "prompt" if task_kind(kind) == "generation" else "text"


def render_text(spec: PromptSpec, fields: Mapping[str, Any], main: InputField = "text") -> str:
    """Return the text of `fields`: the template filled in, or the bare text or prompt (`main` first).

    Text stands as it is, any other value as JSON; braces inside values mean nothing. Raises InvalidRequest naming a
    field that is missing, UnsupportedRequest where there are only messages and nothing to render them with.
    """
    if spec.template is not None:
        return _fill(spec.template, fields)
    for name in (main, "text", "prompt"):
        if fields.get(name) is not None:  # null counts as absent, as in files
            return _as_text(fields[name])
    if "messages" in fields:
        raise UnsupportedRequest("messages need a base with a chat template; send a prompt", param="messages")
    raise InvalidRequest(f"the field {main!r} is missing; there is nothing to read", param=main)


def render_messages(spec: PromptSpec, fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the turns that ask: those given as `messages`, or one user turn made by `render_text`.

    A final assistant turn is the answer and left out. The task's system text comes first unless the messages bring
    one. Raises InvalidRequest as render_text does, for messages of another shape, and for none to answer.
    """
    messages = fields.get("messages")
    if messages is None:
        turns = [{"role": "user", "content": render_text(spec, fields, "prompt")}]
    else:
        turns = list(open_turns(messages))
        if not turns:
            raise InvalidRequest("messages hold no turn to answer", param="messages")
    if spec.system is not None and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": spec.system})
    return turns


def input_text(example: Example, kind: Kind, template: str | None = None) -> str:
    """Return one text for what a row lets the base read, so that rows of equal input have equal texts.

    Raises DataError with the row's place where it lacks a field of `template`.
    """
    if task_kind(kind) == "generation" and (messages := example.prompt_messages) is not None:
        return str(messages)
    try:
        return render_text(PromptSpec(template=template), example.fields, input_field(kind))
    except InvalidRequest as error:
        raise DataError(f"{example.where}: {error}") from error


def _fill(template: str, fields: Mapping[str, Any]) -> str:
    try:
        check_template(template)
    except ValueError as error:
        raise InvalidRequest(f"the task's prompt template is wrong: {error}") from error
    pieces: list[str] = []
    end = 0
    for part in TEMPLATE_PART.finditer(template):
        name = part["name"]
        if name is not None and fields.get(name) is None:
            raise InvalidRequest(f"the field {name!r} is missing; the task's prompt needs it", param=name)
        pieces += [template[end : part.start()], part.group()[0] if name is None else _as_text(fields[name])]
        end = part.end()
    return "".join(pieces) + template[end:]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
