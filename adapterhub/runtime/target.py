"""What is asked, of whom, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adapterhub.data.output import Output
from adapterhub.data.task import TaskSpec
from adapterhub.engine.request import Adapter
from adapterhub.engine.tally import AdapterCounts, Residency


@dataclass(frozen=True)
class Asker:
    """For whom something is computed.

    Askers of one task have a part of the machine each, by `name`. `admit` is called with the most tokens that prompt
    and answer may take before anything is queued; what it raises refuses the request.
    """

    name: str
    admit: Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """Who answers: the bare base (no spec, digest, version or adapter) or one version of a task.

    `name` is what was asked for. The digest is fixed here, so an alias that moves later does not change the answer.
    `task` is whose share of the machine the answer takes; None for an adapter that is not published. `rules` is the
    sha256 of the text that `spec` was read from. `asker` is None where nobody need be told apart.
    """

    name: str
    spec: TaskSpec | None = None
    digest: str | None = None
    version: int | None = None
    adapter: Adapter | None = None
    task: str | None = None
    rules: str | None = None
    asker: Asker | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A name that can be asked. `parent` is the base for adapters; `created` is in seconds since the epoch."""

    id: str
    parent: str | None
    created: int
    digest: str | None
    kind: str


@dataclass(frozen=True)
class AdapterState:
    """A published version and where its adapter is: in a "slot" (ready to run), in "memory", or on "disk"."""

    id: str
    task: str
    version: int
    digest: str
    kind: str
    aliases: tuple[str, ...]
    residency: str
    pinned: bool


@dataclass(frozen=True)
class AdapterNumbers:
    """What the engine did for one adapter, by its name `task@version`, the base's, or "others"; and where it is."""

    name: str
    counts: AdapterCounts
    residency: Residency


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, as exactly one of text, token ids, messages or a record's fields, and how to go on from it.

    `max_tokens` None means what fits, at most 256. `logprobs` is the number of alternatives a token, 0 for the chosen
    one alone, None for no log-probabilities.
    """

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    fields: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    output: Output | None = None

    @property
    def by_the_task(self) -> bool:
        """Whether the prompt is made by the task's rules: text and token ids stand as they are."""
        return self.messages is not None or self.fields is not None


@dataclass(frozen=True)
class Prediction:
    """One answer: `label` and `probs`, or `labels` and `probs`, or `completion`, or a `vector` of length 1.

    `label` is None beside `probs` where the task gives no label: its likeliest one is not likely enough. `logits` are
    what the head gave, before any temperature, one a label; they are no part of the record.
    """

    label: str | None = None
    labels: tuple[str, ...] | None = None
    probs: Mapping[str, float] | None = None
    completion: str | None = None
    logits: tuple[float, ...] | None = None
    vector: tuple[float, ...] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def answer(self) -> str | tuple[str, ...] | None:
        """The label, the labels or the completion: what metrics compare with gold. None where no label is given."""
        if self.labels is not None:
            return self.labels
        assert self.completion is not None or self.probs is not None
        return self.label if self.completion is None else self.completion

    def to_record(self) -> dict[str, Any]:
        """Return the JSON-able answer, without token counts."""
        if self.completion is not None:
            return {"completion": self.completion}
        if self.vector is not None:
            return {"vector": list(self.vector)}
        key = "label" if self.labels is None else "labels"
        value = self.label if self.labels is None else list(self.labels)
        return {key: value, "probs": dict(self.probs or {})}


@dataclass(frozen=True, eq=False)
class Embedding:
    """A text's vector: [dim], float32 or wider, on the CPU; of length 1 where an embedding task made it."""

    vector: Tensor
    prompt_tokens: int


@dataclass(frozen=True)
class Score:
    """How likely a continuation is: `logprob` is the natural logarithm of its probability after the prompt.

    It is the sum of `token_logprobs`, one a token of `token_ids`, each given the prompt and the tokens before it.
    """

    text: str
    logprob: float
    token_logprobs: tuple[float, ...]
    token_ids: tuple[int, ...]
    prompt_tokens: int

    @property
    def tokens(self) -> int:
        """How many tokens the continuation has; `logprob / tokens` compares ones of different length."""
        return len(self.token_ids)
