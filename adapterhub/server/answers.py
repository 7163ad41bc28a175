"""Chunks of generations as OpenAI's answers: whole ones, and the events of a stream."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterhub.runtime.stream import Chunk, TokenLogprob

from .wire import event

BROKEN = "\ufffd"


@dataclass
class Choice:
    """What has come of one generation so far; `characters` is the length of its text."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    characters: int = 0
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, chunk: Chunk) -> None:
        """Take in the next chunk."""
        self.texts.append(chunk.text)
        tokens = chunk.logprobs or ()
        self.logprobs.extend(tokens)
        self.offsets.extend([self.characters] * len(tokens))
        self.characters += len(chunk.text)
        self.finish_reason = chunk.finish_reason
        self.prompt_tokens = chunk.prompt_tokens
        self.completion_tokens = chunk.completion_tokens


class Answer(ABC):
    """One request's answer, gathered over its choices, `each` of them a prompt; subclasses give it a route's form."""

    prefix: str
    object: str
    chunk_object: str

    def __init__(
        self, model: str, fingerprint: str | None, choices: int, *, each: int = 1, logprobs: bool = False
    ) -> None:
        self._each = each
        self.choices = [Choice() for _ in range(choices)]
        self.logprobs = logprobs
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def usage(self) -> dict[str, int]:
        """Return the exact counts of tokens over all choices; a prompt counts once, however many answers it has."""
        prompts = [self.choices[at : at + self._each] for at in range(0, len(self.choices), self._each)]
        prompt = sum(max(choice.prompt_tokens for choice in each) for each in prompts)
        completion = sum(choice.completion_tokens for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def whole(self) -> dict[str, Any]:
        """Return the answer when every choice has finished."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self.choices)]
        return {**self._head, "object": self.object, "choices": choices, "usage": self.usage()}

    def opening(self, *, include_usage: bool) -> bytes:
        """Return the events before the first token."""
        return b"".join(self._event(choice, include_usage) for choice in self._opening_choices())

    def events(self, index: int, chunk: Chunk, *, include_usage: bool) -> bytes:
        """Take in a chunk and return the events that tell of it."""
        told = self.choices[index]
        told.add(chunk)
        offsets = told.offsets[len(told.offsets) - len(chunk.logprobs or ()) :]
        return b"".join(self._event(choice, include_usage) for choice in self._chunk_choices(index, chunk, offsets))

    def closing(self) -> bytes:
        """Return the event of usage."""
        return event({**self._head, "object": self.chunk_object, "choices": [], "usage": self.usage()})

    def _event(self, choice: dict[str, Any], include_usage: bool) -> bytes:
        # A stream that will end with usage says `null` before, as OpenAI's does.
        extra = {"usage": None} if include_usage else {}
        return event({**self._head, "object": self.chunk_object, "choices": [choice], **extra})

    @abstractmethod
    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]: ...

    @abstractmethod
    def _opening_choices(self) -> Iterable[dict[str, Any]]: ...

    @abstractmethod
    def _chunk_choices(self, index: int, chunk: Chunk, offsets: Sequence[int]) -> Iterable[dict[str, Any]]: ...


class CompletionAnswer(Answer):
    """`text_completion`."""

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[TokenLogprob] | None,
        reason: str | None,
        offsets: Sequence[int],
    ) -> dict[str, Any]:
        logprobs = completion_logprobs(tokens or (), offsets) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return self._choice(index, "".join(choice.texts), choice.logprobs, choice.finish_reason, choice.offsets)

    def _opening_choices(self) -> Iterable[dict[str, Any]]:
        return ()

    def _chunk_choices(self, index: int, chunk: Chunk, offsets: Sequence[int]) -> Iterable[dict[str, Any]]:
        if chunk.text or chunk.logprobs or chunk.finish_reason:
            yield self._choice(index, chunk.text, chunk.logprobs, chunk.finish_reason, offsets)


class ChatAnswer(Answer):
    """`chat.completion`, and its chunks of deltas."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _logprobs(self, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        return {"content": [chat_logprob(token) for token in tokens or ()], "refusal": None} if self.logprobs else None

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(choice.texts), "refusal": None}
        logprobs = self._logprobs(choice.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _opening_choices(self) -> Iterable[dict[str, Any]]:
        for index in range(len(self.choices)):
            yield self._delta(index, {"role": "assistant", "content": ""})

    def _chunk_choices(self, index: int, chunk: Chunk, offsets: Sequence[int]) -> Iterable[dict[str, Any]]:
        if chunk.text or chunk.logprobs:
            yield self._delta(index, {"content": chunk.text}, logprobs=self._logprobs(chunk.logprobs))
        if chunk.finish_reason:
            yield self._delta(index, {}, reason=chunk.finish_reason)

    def _delta(
        self, index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def finite(logprob: float) -> float:
    """Return the log-probability, with OpenAI's -9999 for a token that was ruled out: JSON has no infinity."""
    return max(logprob, -9999.0)


def bytes_of(text: str, raw: bytes | None = None) -> list[int] | None:
    """Return a token's bytes; None where `text` stands for a part of a character and its own bytes are not known."""
    if raw is None:
        if BROKEN in text:
            return None
        raw = text.encode()
    return list(raw)


def chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    """Return one token in chat's form."""
    top = [{"token": text, "logprob": finite(logprob), "bytes": bytes_of(text)} for text, _, logprob in token.top]
    own = {"token": token.token, "logprob": finite(token.logprob), "bytes": bytes_of(token.token, token.raw)}
    return {**own, "top_logprobs": top}


def completion_logprobs(tokens: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any]:
    """Return tokens in the completions' form; `offsets` say where in the completion each token's text begins."""
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens],
        "text_offset": list(offsets),
    }


def _likeliest(token: TokenLogprob) -> dict[str, float]:
    """Return the alternatives by their text, and the sampled token whether it is among them or not."""
    top: dict[str, float] = {}
    for text, _, logprob in token.top:
        # Tokens that are parts of a character share one text; the likeliest stands, and the sampled one above all.
        top.setdefault(text, finite(logprob))
    return {**top, token.token: finite(token.logprob)}
