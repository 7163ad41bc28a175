"""What the engine is asked, and what it answers with."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapterhub.lora.weights import LoraWeights

_ids = itertools.count(1)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `logprobs` is how many alternatives to report beside each chosen token; None reports nothing. `stop_ids` end the
    answer (unless `ignore_eos`) and are barred before `min_tokens` tokens are out.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True)
class Adapter:
    """Weights under the digest that identifies them. `pooling` says what a head reads; None for generation."""

    digest: str
    weights: LoraWeights
    pooling: str | None = None


@dataclass(frozen=True)
class TokenEvent:
    """One token of an answer; `top` holds (token id, log-probability) of the likeliest alternatives.

    `finish` is "stop" (a stop id was chosen; the token is that id), "length", or None while more is to come.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    finish: str | None


@dataclass(frozen=True)
class LogitsEvent:
    """The head's output for a classification row: [labels], float32 or wider."""

    logits: Tensor


@dataclass(frozen=True)
class FailedEvent:
    """The row ended in an error."""

    error: Exception


Event = TokenEvent | LogitsEvent | FailedEvent
Sink = Callable[[Event], None]


@dataclass(eq=False)
class Request:
    """One row: prompt token ids, the adapter to use, and a sink that gets events from the engine's thread.

    `sampling` None asks for the head's logits instead of tokens.
    """

    tokens: tuple[int, ...]
    sink: Sink
    adapter: Adapter | None = None
    sampling: Sampling | None = None
    id: int = field(default_factory=lambda: next(_ids))
    cancelled: bool = False
    failed: bool = False

    def tell(self, event: Event) -> None:
        """Hand an event to the sink. What a sink raises is logged: it must not cost other rows their tokens."""
        try:
            self.sink(event)
        except Exception:
            log.exception("the sink of request %d failed", self.id)

    @property
    def room(self) -> int:
        """Positions of cache the row may come to need."""
        return len(self.tokens) + (self.sampling.max_tokens if self.sampling else 0)


@dataclass(eq=False)
class Row:
    """A request that is running: its slot, what it said so far, and its own random numbers."""

    request: Request
    slot: int
    output: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None

    @property
    def length(self) -> int:
        """Positions in the cache once the next forward is done."""
        return len(self.request.tokens) + len(self.output)
