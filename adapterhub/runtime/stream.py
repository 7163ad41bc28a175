"""One running generation, seen from outside the engine's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from adapterhub.engine.request import Event, FailedEvent, TokenEvent
from adapterhub.errors import Cancelled

from .text import Detokenizer, StopFilter, token_bytes

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability, and the likeliest alternatives as (token, id, log-probability).

    `raw` is the token's own bytes where they are known: a token may be a part of a character, which no text shows.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...]
    raw: bytes | None = None


@dataclass(frozen=True)
class Chunk:
    """What one step added. Token counts are totals so far; `finish_reason` is set on the last chunk only.

    `text` may be empty while a character or a possible stop string is incomplete.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


Listener = Callable[[Chunk | Exception], None]


class GenerationStream:
    """Chunks of one answer, in order. Thread-safe; chunks that came before a subscriber are replayed to it."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_tokens: int,
        stops: tuple[str, ...],
        min_tokens: int,
        on_cancel: Callable[[], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt_tokens = prompt_tokens
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopFilter(stops)
        self._min_tokens = min_tokens
        self._on_cancel = on_cancel
        self._items: list[Chunk | Exception] = []
        self._listeners: list[Listener] = []
        self._changed = threading.Condition(threading.RLock())
        self._count = 0
        self._ended = False

    def receive(self, event: Event) -> None:
        """Take an event from the engine; called in its thread."""
        with self._changed:
            if self._ended:
                return
            if isinstance(event, FailedEvent):
                self._push(event.error)
            elif isinstance(event, TokenEvent):
                try:
                    chunk: Chunk | Exception = self._chunk(event)
                except Exception as error:  # whoever waits must hear of it; the engine would only log it
                    self._on_cancel()
                    chunk = error
                self._push(chunk)

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with every chunk, the past ones first, the coming ones in the engine's thread.

        An Exception in place of a chunk is the end.
        """
        with self._changed:
            for item in self._items:
                listener(item)
            self._listeners.append(listener)

    def __iter__(self) -> Iterator[Chunk]:
        """Yield chunks as they come; raises the error the generation ended in."""
        position = 0
        while True:
            with self._changed:
                while position == len(self._items):
                    self._changed.wait()
                item = self._items[position]
            position += 1
            if isinstance(item, Exception):
                raise item
            yield item
            if item.finish_reason is not None:
                return

    def cancel(self) -> None:
        """Give up: the row leaves the engine at its next step, and whoever still waits gets Cancelled."""
        self._on_cancel()
        with self._changed:
            if not self._ended:
                self._push(Cancelled("the generation was cancelled"))

    def result(self) -> Completion:
        """Wait for the end and return the whole answer; raises the error it ended in."""
        chunks = list(self)
        last = chunks[-1]
        assert last.finish_reason is not None
        logprobs = None if last.logprobs is None else tuple(lp for chunk in chunks for lp in chunk.logprobs or ())
        return Completion(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            logprobs=logprobs,
            finish_reason=last.finish_reason,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
        )

    def _push(self, item: Chunk | Exception) -> None:
        with self._changed:
            self._items.append(item)
            if isinstance(item, Exception) or item.finish_reason is not None:
                self._ended = True
            for listener in self._listeners:
                listener(item)
            self._changed.notify_all()

    def _chunk(self, event: TokenEvent) -> Chunk:
        self._count += 1
        # The token that stops is counted but is no text.
        fresh = "" if event.finish == "stop" else self._detokenizer.add(event.token)
        if event.finish is not None:
            fresh += self._detokenizer.flush()
        # A stop string counts from the token on that may be the last.
        text = self._stops.add(fresh) if self._count >= self._min_tokens else fresh
        finish: FinishReason | None = event.finish  # type: ignore[assignment]
        if self._stops.stopped:
            finish = "stop"
            self._on_cancel()
        elif finish is not None:
            text += self._stops.flush()
        return Chunk(text, (event.token,), self._logprobs(event), finish, self._prompt_tokens, self._count)

    def _logprobs(self, event: TokenEvent) -> tuple[TokenLogprob, ...] | None:
        if event.logprob is None:
            return None
        top = tuple((self._word(token), token, value) for token, value in event.top)
        raw = token_bytes(self._tokenizer, event.token)
        return (TokenLogprob(self._word(event.token), event.token, event.logprob, top, raw),)

    def _word(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
