"""The one way text becomes token ids, so that a task is served exactly as it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from adapterhub.errors import BaseError, InvalidRequest, PromptTooLong, UnsupportedRequest

from .prompt import input_field, render_messages, render_text
from .task import TaskSpec


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers answer it."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a completion."""
        ...

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Any]:
        """Return a mapping with `input_ids`."""
        ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Return the token ids of a conversation."""
        ...


def encode_input(tokenizer: Tokenizer, spec: TaskSpec, fields: Mapping[str, Any]) -> list[int]:
    """Return the token ids the base reads before it answers.

    Classification and plain generation: the rendered text with the tokenizer's own special tokens, no EOS added.
    Chat generation: the messages through the task's chat template, up to where the answer begins. Raises
    InvalidRequest where a field is missing, nothing is left to read or the text is no whole Unicode,
    UnsupportedRequest where the chat template refuses the messages.
    """
    if spec.kind == "generation" and spec.prompt.style == "chat":
        messages = render_messages(spec.prompt, fields)
        for turn in messages:
            _check_whole(turn["content"], "messages" if "messages" in fields else "prompt")
        ids = _chat_ids(tokenizer, spec, messages)
    else:
        text = render_text(spec.prompt, fields, input_field(spec.kind))
        _check_whole(text, input_field(spec.kind))
        ids = [int(token) for token in tokenizer(text)["input_ids"]]
    if not ids:
        raise InvalidRequest("the text is empty; there is nothing to read", param=input_field(spec.kind))
    return ids


def encode_completion(tokenizer: Tokenizer, completion: str) -> list[int]:
    """Return the ids of `completion` without special tokens, then EOS, so that a task learns to stop.

    Raises BaseError for a base that has no EOS token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise BaseError("the base's tokenizer has no EOS token, so no completion could end; use a base that has one")
    return [*_bare_ids(tokenizer, completion), int(end)]


def encode_continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text that goes on after a prompt: tokenised by itself, no special tokens before or after.

    No token spans the boundary, so where a space parts the two it belongs to the continuation (" Oslo"). Raises
    InvalidRequest where nothing is left to read or the text is no whole Unicode.
    """
    _check_whole(text, "continuations")
    ids = _bare_ids(tokenizer, text)
    if not ids:
        raise InvalidRequest("a continuation is empty; it has no tokens to score", param="continuations")
    return ids


def check_length(length: int | Sequence[int], spec: TaskSpec, where: str = "") -> None:
    """Raise PromptTooLong where `length` tokens (a number, or the ids) are more than the task takes."""
    count = length if isinstance(length, int) else len(length)
    if count > spec.max_length:
        place = f"{where}: " if where else ""
        raise PromptTooLong(
            f"{place}{count} tokens are more than the {spec.max_length} this task takes; shorten the text, "
            "or train the task with a larger max_length",
            param=input_field(spec.kind),
        )


def _check_whole(text: str, param: str) -> None:
    """Raise InvalidRequest for half characters, which no tokenizer takes: bytes of a command line that are no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise InvalidRequest(
            f"character {error.start + 1} of the text is {half}, half of a character or a byte that is not UTF-8; "
            "send whole Unicode text",
            param=param,
        ) from error


def _bare_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _chat_ids(tokenizer: Tokenizer, spec: TaskSpec, messages: list[dict[str, str]]) -> list[int]:
    try:
        ids = tokenizer.apply_chat_template(
            messages,
            chat_template=spec.prompt.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    except Exception as error:  # A template is a program: it refuses roles it does not know, or divides by zero.
        reason = str(error) or type(error).__name__
        raise UnsupportedRequest(
            f"the base's chat template refuses the messages: {reason}", param="messages"
        ) from error
    return [int(token) for token in ids]
