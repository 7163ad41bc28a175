"""What the engine is asked, and what it answers with."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from adapterhub.lora.weights import LoraWeights

from .kv_cache import Place

_ids = itertools.count(1)
log = logging.getLogger(__name__)


class Constraint(Protocol):
    """How far one row has come in what it may say."""

    def allowed(self) -> Tensor:
        """Return bool [vocabulary], on the CPU: the tokens that may come next; where it may end, stop ids are."""

    def take(self, token: int) -> None:
        """Go on from a token that was allowed."""


class Grammar(Protocol):
    """What a row may say. Rows share it, each at a place of its own; what it raises fails that row alone."""

    def start(self) -> Constraint:
        """Return the beginning."""


@dataclass(frozen=True)
class Sampling:
    """Ask for tokens, and say how they are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `logprobs` is how many alternatives to report beside each chosen token; None reports nothing. `stop_ids` end the
    answer (unless `ignore_eos`) and are barred before `min_tokens` tokens are out. With a `grammar` the answer ends
    where that does, whatever these two say.
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
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Classify:
    """Ask for the logits of the adapter's head."""


@dataclass(frozen=True)
class Embed:
    """Ask for one vector: the "mean" of all tokens' last hidden states, that of the "last", or of the first ("cls")."""

    pooling: str = "mean"


@dataclass(frozen=True)
class Score:
    """Ask for the log-probability of every token of each continuation, given the prompt and what comes before it."""

    continuations: tuple[tuple[int, ...], ...]


Ask = Sampling | Classify | Embed | Score


@dataclass(frozen=True)
class Adapter:
    """The digest that identifies weights, and how to read them. `pooling` says what a head reads; None: no head.

    `read` fetches the weights, in the engine's dtype, into host memory. It runs in the loader's thread and may raise.
    """

    digest: str
    read: Callable[[], LoraWeights]
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
class EmbeddingEvent:
    """The pooled hidden state of a row: [dim], float32 or wider."""

    vector: Tensor


@dataclass(frozen=True)
class ScoresEvent:
    """Log-probabilities, one a token, of each continuation in the order they were asked."""

    logprobs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class FailedEvent:
    """The row ended in an error."""

    error: Exception


Event = TokenEvent | LogitsEvent | EmbeddingEvent | ScoresEvent | FailedEvent
Sink = Callable[[Event], None]


@dataclass(eq=False)
class Request:
    """One row: prompt token ids, a sink that gets events from the engine's thread, what is asked, and of whom.

    `share` names the queue whose requests are served in turn with those of others; None is the adapter's digest, or
    the base. `weight` is how much of the machine that queue gets beside one of weight 1. `owner` is for whom it runs,
    all of a queue for one; owners are kept from slowing one another down, None is nobody.
    """

    tokens: tuple[int, ...]
    sink: Sink
    ask: Ask
    adapter: Adapter | None = None
    share: str | None = None
    weight: float = 1.0
    owner: str | None = None
    id: int = field(default_factory=lambda: next(_ids))
    cancelled: bool = False
    made_at: float = field(default_factory=time.perf_counter)

    def tell(self, event: Event) -> None:
        """Hand an event to the sink. What a sink raises is logged: it must not cost other rows their tokens."""
        try:
            self.sink(event)
        except Exception:
            log.exception("the sink of request %d failed", self.id)

    @property
    def sampling(self) -> Sampling | None:
        """The rules of a generation; None where something else is asked."""
        return self.ask if isinstance(self.ask, Sampling) else None

    @property
    def digest(self) -> str:
        """The adapter's identity; "" for the bare base."""
        return self.adapter.digest if self.adapter else ""

    @property
    def queue(self) -> str:
        """The name of the share: the adapter's own, unless the request says otherwise."""
        return self.digest if self.share is None else self.share

    @property
    def group(self) -> str:
        """For whom rows are kept: its owner, or its queue where it has none."""
        return self.queue if self.owner is None else self.owner

    @property
    def keeps_cache(self) -> bool:
        """Whether something runs after the prompt and looks back at it."""
        return isinstance(self.ask, Sampling | Score)

    @property
    def room(self) -> int:
        """Positions of cache the row may come to need; continuations that are scored need none of their own."""
        return len(self.tokens) + (self.ask.max_tokens if isinstance(self.ask, Sampling) else 0)


@dataclass(eq=False)
class Row:
    """A request that is running: its slot, its place in the cache, how far it has come, and its own random numbers.

    `computed` counts positions of the prompt that ran or came from the prefix cache; `output` holds the tokens said.
    `branched` counts continuations whose spans were planned, `logprobs` collects what was read of each; `state` is the
    pooled hidden state so far ([dim]; for "mean" a sum). `spoke` counts decoded tokens of all rows, up to its last;
    `constraint` is where `output` has come to in its grammar.
    """

    request: Request
    slot: int
    place: Place | None = None
    computed: int = 0
    output: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None
    branched: int = 0
    logprobs: list[list[float]] = field(default_factory=list)
    state: Tensor | None = None
    spoke: int = 0
    constraint: Constraint | None = None

    @property
    def length(self) -> int:
        """Positions in the cache once the next decode forward is done."""
        return len(self.request.tokens) + len(self.output)
