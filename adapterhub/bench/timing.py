"""One request on the clock: when its first token came, when its last, and how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from .endpoint import Endpoint
from .workload import Ask

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """A request that ended. Times are seconds from the load's beginning.

    `start` is when it was due, not when it was sent: where the machine that asks falls behind, that counts as waiting
    too, as it would for a person. `first` and `last` are when text came first and last, None where none came. `error`
    is None for an answer that came whole, else the HTTP status, `timeout`, `connection`, or `stream` for one that broke
    off; `message` is what was said of it.
    """

    model: str
    start: float
    end: float
    first: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    error: str | None = None
    message: str = ""

    @property
    def latency(self) -> float:
        """Seconds from when it was due to the answer's last byte."""
        return self.end - self.start

    @property
    def first_token(self) -> float | None:
        """Seconds from when it was due to the first text."""
        return None if self.first is None else self.first - self.start

    @property
    def token(self) -> float | None:
        """Seconds a token after the first; None for an answer of fewer than two."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)


@dataclass
class _Heard:
    """What has come of a stream so far."""

    first: float | None = None
    last: float | None = None
    pieces: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    whole: bool = False

    def hear(self, data: str, now: float) -> None:
        if data == "[DONE]":
            self.whole = True
            return
        event = json.loads(data)
        if event.get("error") is not None:
            self.error = str(event["error"])
        for choice in event.get("choices") or ():
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            if text:
                self.first = now if self.first is None else self.first
                self.last, self.pieces = now, self.pieces + 1
        if isinstance(usage := event.get("usage"), dict):
            self.usage = usage


async def ask_once(endpoint: Endpoint, ask: Ask, start: float, clock: Clock, seconds: float) -> Timing:
    """Send a request, read its stream to the end and say how it went; whatever the server does becomes a Timing.

    Tokens are those of the answer's `usage`; of a server that sends none, events with text are counted instead.
    """
    heard = _Heard()
    error, message = None, ""
    try:
        async with asyncio.timeout(seconds), endpoint.open("POST", ask.path, ask.body) as reply:
            if reply.status != 200:
                error, message = str(reply.status), (await reply.text()).strip()
            else:
                async for data in reply.events():
                    heard.hear(data, clock())
                if heard.error is not None or not heard.whole:
                    error, message = "stream", heard.error or "the stream ended without [DONE]"
    except TimeoutError:
        error, message = "timeout", f"no whole answer in {seconds:g} seconds"
    except (OSError, EOFError) as problem:
        error, message = "connection", str(problem) or repr(problem)
    except (ValueError, TypeError, AttributeError) as problem:
        error, message = "stream", f"not what OpenAI's interface says: {problem!r}"
    return Timing(
        ask.model,
        start,
        clock(),
        heard.first,
        heard.last,
        heard.usage.get("prompt_tokens", 0),
        heard.usage.get("completion_tokens", heard.pieces),
        error,
        message[:300],
    )
