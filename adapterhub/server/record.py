"""What is known of one request, gathered on its way, told once at its end."""

from __future__ import annotations

import math
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from .access import Visitor
from .fields import shorten
from .metrics import NO_ADAPTER, Metrics

ROUTES = frozenset(
    {"/health", "/ready", "/metrics", "/openapi.json", "/v1/models"}
    | {"/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/embeddings"}
    | {"/v1/feedback", "/v1/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    | {f"/v1/adapters/{action}" for action in ("load", "pin", "unpin", "unload")}
)
GONE = 499


def route_of(path: str) -> str:
    """Return the route a path belongs to, one of a fixed few."""
    if path in ROUTES:
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "unknown"


def request_id(offered: str | None) -> str:
    """Return the client's own id where it is a plain word, else a new one."""
    if offered and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", offered):
        return offered
    return uuid.uuid4().hex


@dataclass
class Record:
    """One request.

    `adapter` is the bounded label of metrics, `model` what was asked, `visitor` None without keys.

    `seconds` is how long it may take from its arrival; `placed` says that it takes one of the server's places.
    """

    id: str
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    adapter: str = NO_ADAPTER
    model: str | None = None
    digest: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None
    last_token: float = 0.0
    choices: int = 1
    status: int = 0
    failed: int = 0
    gone: bool = False
    visitor: Visitor | None = None
    seconds: float = math.inf
    placed: bool = False

    @property
    def outcome(self) -> int:
        """The status that tells how it ended: 499 for a client that left, an error's where a stream broke off."""
        return GONE if self.gone else self.failed or self.status

    @property
    def route(self) -> str:
        """The route, one of a fixed few."""
        return route_of(self.path)

    @property
    def key(self) -> str | None:
        """The id of the key that asks; None without keys."""
        return None if self.visitor is None else self.visitor.key.id

    @property
    def seconds_left(self) -> float | None:
        """How long it may go on; None for ever."""
        if self.seconds == math.inf:
            return None
        return max(0.0, self.started + self.seconds - time.perf_counter())

    def settle(self) -> None:
        """Tell the key's quota what was used of what was taken; only the first call counts."""
        if self.visitor is not None:
            self.visitor.settle(self.prompt_tokens + self.completion_tokens)

    def saw_token(self) -> None:
        """Note the time of a generated token."""
        self.last_token = time.perf_counter() - self.started
        if self.first_token is None:
            self.first_token = self.last_token

    @property
    def token_seconds(self) -> float | None:
        """Time between two tokens of a choice; None where no choice has two."""
        steps = self.completion_tokens / self.choices - 1
        return (self.last_token - self.first_token) / steps if self.first_token is not None and steps > 0 else None

    def count(self, metrics: Metrics) -> None:
        """Add this request to the metrics."""
        adapter = metrics.label(self.adapter)
        metrics.requests.labels(adapter, self.route, str(self.outcome)).inc()
        metrics.seconds.labels(adapter, self.route).observe(time.perf_counter() - self.started)
        if self.prompt_tokens:
            metrics.prompt_tokens.labels(adapter).inc(self.prompt_tokens)
        if self.completion_tokens:
            metrics.completion_tokens.labels(adapter).inc(self.completion_tokens)
        if self.first_token is not None:
            metrics.first_token.labels(adapter).observe(self.first_token)
        if self.token_seconds is not None:
            metrics.token_seconds.labels(adapter).observe(self.token_seconds)

    def line(self) -> dict[str, Any]:
        """Return the log line: names, digest, counts and times; no text of prompts or answers."""
        line: dict[str, Any] = {
            "request_id": self.id,
            "method": self.method[:16],
            "path": shorten(self.path, 128)[1:-1],
            "status": self.outcome,
            "ms": round((time.perf_counter() - self.started) * 1000, 1),
        }
        if self.visitor is not None:
            line["key"] = self.visitor.name
        if self.model is not None:
            line |= {"model": self.model[:100], "digest": self.digest}
            line |= {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        if self.first_token is not None:
            line["first_token_ms"] = round(self.first_token * 1000, 1)
        return line
