"""A loaded base: tokenizer, adapters' rules, and the engine's thread; from fields to events and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from adapterhub.base.describe import hidden_size
from adapterhub.base.features import check_pooling, default_pooling
from adapterhub.base.load import compute_dtype, end_tokens, load_backbone, load_network, load_tokenizer
from adapterhub.base.source import Base
from adapterhub.data.prompt import input_field
from adapterhub.data.task import FEATURE_POOLINGS, PromptSpec, TaskSpec, a_task
from adapterhub.data.tokens import check_length, encode_completion, encode_continuation, encode_input
from adapterhub.engine.engine import Engine
from adapterhub.engine.loop import EngineLoop
from adapterhub.engine.request import (
    Ask,
    Classify,
    Embed,
    EmbeddingEvent,
    Event,
    FailedEvent,
    Grammar,
    LogitsEvent,
    Request,
    ScoresEvent,
    Sink,
)
from adapterhub.engine.request import Score as ScoreContinuations
from adapterhub.engine.scheduler import Limits
from adapterhub.engine.tally import MOST_ADAPTERS, OTHERS, Residency
from adapterhub.errors import CorruptAdapter, InvalidRequest, PromptTooLong, UnsupportedRequest, UsageError
from adapterhub.native.threads import choose_threads

from .adapters import AdapterCache
from .grammar import Grammars
from .pending import Pending
from .sampling import make_sampling
from .stream import Chunk, GenerationStream
from .target import AdapterNumbers, Embedding, GenerationRequest, Prediction, Score, Target
from .threads import decode_chain

log = logging.getLogger(__name__)

Input = str | Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class CoreOptions:
    """How a base is loaded and how large its engine is; AdapterHub says what each means."""

    precision: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    limits: Limits = field(default_factory=Limits)
    resident: int = 32
    host_bytes: int = 1 << 30
    prefix_bytes: int = 256 << 20
    weights: Mapping[str, float] = field(default_factory=dict)
    reference: bool = False

    def __post_init__(self) -> None:
        # What the engine checks itself is found only once the base is in memory.
        least = {"threads": (self.threads, 1), "resident": (self.resident, 1), "rows": (self.limits.rows, 1)}
        least["cache_tokens"] = (self.limits.cache_tokens, 1)
        sizes = {"host_bytes": (self.host_bytes, 0), "prefix_bytes": (self.prefix_bytes, 0)}
        for name, (value, lowest) in {**least, **sizes}.items():
            if value is not None and value < lowest:
                raise UsageError(f"{name} is {value}; it must be at least {lowest}")
        for name, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise UsageError(f"the weight of {name!r} is {weight}; it must be above 0 and finite")


class LoadedBase:
    """One base in memory, and the ways to ask it."""

    def __init__(self, base: Base, options: CoreOptions) -> None:
        self.base = base
        dtype = compute_dtype(options.precision, options.device)
        self._tokenizer = load_tokenizer(base, require_pad=False)
        self._weights = options.weights
        self.adapters = AdapterCache(base.name, base.fingerprint, dtype)
        width = hidden_size(base)
        self.threads = choose_threads(options.threads, lambda: decode_chain(width, dtype), options.device)
        log.info("computing with threads: %d (%s)", self.threads.count, self.threads.reason)
        end = self._tokenizer.eos_token_id
        self._stop_ids = end_tokens(base) | ({int(end)} if end is not None else set())

        def make() -> Engine:
            load = load_backbone if options.reference else load_network
            return Engine(
                load(base, dtype, options.device),
                base.context_length,
                limits=options.limits,
                resident=options.resident,
                host_bytes=options.host_bytes,
                prefix_bytes=options.prefix_bytes,
                fingerprint=base.fingerprint,
                reference=options.reference,
            )

        self.loop = EngineLoop(make, threads=self.threads.count)
        self._grammars = Grammars(self._tokenizer, self.loop.engine.runner.vocabulary, self._stop_ids)
        self._plain = _base_spec(base, self._tokenizer)
        self._raw = replace(self._plain, prompt=PromptSpec())
        # What people call a digest: a version's number within its task. Bounded as the engine's own counts are.
        self._names: dict[str, str] = {}

    def stats(self) -> Mapping[str, float]:
        """Return the engine's numbers, and how many threads compute."""
        return {**self.loop.engine.stats(), "threads": self.threads.count}

    def adapter_counts(self) -> list[AdapterNumbers]:
        """Return what the engine did for each adapter, by name; those nobody knows a name of are told as "others"."""
        engine = self.loop.engine
        places, told = engine.residency(), dict[str, AdapterNumbers]()
        for digest, counts in engine.tally.counts().items():
            name = self._names.get(digest, OTHERS) if digest else self.base.name
            place = places.get(digest, Residency())
            told[name] = AdapterNumbers(name, told[name].counts + counts if name in told else counts, place)
        return list(told.values())

    def start_classification(self, target: Target, given: Input) -> Pending[Prediction]:
        """Queue one text; raises what is wrong with it at once."""
        spec = target.spec
        assert spec is not None
        tokens = encode_input(self._tokenizer, spec, _fields(given, "text"))
        check_length(tokens, spec)

        def read(event: Event) -> Prediction | None:
            return _labelled(spec, event.logits, len(tokens)) if isinstance(event, LogitsEvent) else None

        return self._ask(target, tokens, Classify(), read)

    def start_vector(self, target: Target, given: Input) -> Pending[Prediction]:
        """Queue one text for the answer of an embedding task; raises what is wrong with it at once."""
        spec, tokens = self._read(target, given)
        check_length(tokens, spec)

        def read(event: Event) -> Prediction | None:
            if not isinstance(event, EmbeddingEvent):
                return None
            return Prediction(vector=tuple(_unit(event.vector).tolist()), prompt_tokens=len(tokens))

        return self._ask(target, tokens, Embed(self.pooling(target, None)), read)

    def pooling(self, target: Target, asked: str | None) -> str:
        """Return `asked` where it is known; for None what an embedding task was trained with, or the base's default.

        Raises InvalidRequest, CorruptAdapter and BaseError.
        """
        if asked is not None:
            check_pooling(asked)
            return asked
        if target.spec is None or target.spec.kind != "embedding":
            return default_pooling(self.base)
        if target.spec.pooling not in FEATURE_POOLINGS:
            raise CorruptAdapter(
                f"{target.name!r} makes vectors, but its task.json has pooling {target.spec.pooling!r}; expected one "
                f"of {', '.join(FEATURE_POOLINGS)}"
            )
        return target.spec.pooling

    def start_embedding(self, target: Target, pooling: str, given: Input) -> Pending[Embedding]:
        """Queue one text for its vector; raises what is wrong with it at once."""
        spec, tokens = self._read(target, given)
        check_length(tokens, spec)
        normal = spec.kind == "embedding"

        def read(event: Event) -> Embedding | None:
            if not isinstance(event, EmbeddingEvent):
                return None
            return Embedding(_unit(event.vector) if normal else event.vector, len(tokens))

        return self._ask(target, tokens, Embed(pooling), read)

    def start_scores(self, target: Target, ended: bool, asked: tuple[Input, Sequence[str]]) -> Pending[list[Score]]:
        """Queue one prompt and its continuations, with EOS after each if `ended`; raises what is wrong at once."""
        given, texts = asked
        if isinstance(texts, str):
            raise InvalidRequest("the continuations are one text; give a list of texts", param="continuations")
        texts = tuple(texts)  # an iterator gives them once only, and they are told in the answer too
        if target.spec is not None and target.spec.kind != "generation":
            raise UnsupportedRequest(f"{target.name!r} is {a_task(target.spec.kind)}; it scores no text", param="model")
        spec, tokens = self._read(target, given)
        encode = encode_completion if ended else encode_continuation
        continuations = tuple(tuple(encode(self._tokenizer, text)) for text in texts)
        if not continuations:
            raise InvalidRequest("there are no continuations to score", param="continuations")
        longest, limit = max(map(len, continuations)), min(spec.max_length, self.base.context_length)
        if len(tokens) + longest > limit:
            raise PromptTooLong(
                f"the prompt has {len(tokens)} tokens and the longest continuation {longest}; together at most {limit} "
                "fit",
                param="prompt",
            )

        def read(event: Event) -> list[Score] | None:
            if not isinstance(event, ScoresEvent):
                return None
            told = zip(texts, continuations, event.logprobs, strict=True)
            return [Score(text, math.fsum(each), each, ids, len(tokens)) for text, ids, each in told]

        return self._ask(target, tokens, ScoreContinuations(continuations), read)

    def start_loading(self, target: Target) -> Pending[bool]:
        """Queue one token, whose answer says that the target's adapter was read, fits the base and is at hand."""
        if target.spec is not None and target.spec.output is not None:
            self._grammars.of_task(target.name, target.spec.output)  # so that no answer waits for it
        token = min(self._stop_ids, default=0)
        return self._ask(target, (token,), Embed("last"), lambda event: isinstance(event, EmbeddingEvent))

    def start_completion(self, target: Target, options: Mapping[str, Any], given: Input) -> Pending[Prediction]:
        """Queue one prompt for its completion; raises what is wrong with it at once."""
        stream = self.start_generation(target, GenerationRequest(fields=_fields(given, "prompt"), **options))
        pending = Pending[Prediction](on_cancel=stream.cancel)
        parts: list[str] = []

        def receive(chunk: Chunk | Exception) -> None:
            if isinstance(chunk, Exception):
                pending.give(chunk)
                return
            parts.append(chunk.text)
            if chunk.finish_reason is not None:
                whole = Prediction(
                    completion="".join(parts),
                    prompt_tokens=chunk.prompt_tokens,
                    completion_tokens=chunk.completion_tokens,
                )
                pending.give(whole)

        stream.subscribe(receive)
        return pending

    def start_generation(self, target: Target, request: GenerationRequest) -> GenerationStream:
        """Queue one prompt and return its stream; raises what is wrong with it at once."""
        spec = target.spec or self._plain
        if spec.kind != "generation":
            use = "embed" if spec.kind == "embedding" else "classify"
            raise UnsupportedRequest(f"{target.name!r} is {a_task(spec.kind)}; ask it to {use}", param="model")
        tokens = self._prompt(spec, request)
        limit = min(spec.max_length, self.base.context_length)
        sampling = make_sampling(request, len(tokens), limit, self._stop_ids, self._grammar(target, request))
        stream: GenerationStream

        def cancel() -> None:
            self.loop.cancel(asked)

        stream = GenerationStream(self._tokenizer, len(tokens), request.stop, request.min_tokens, cancel)
        asked = self._request(target, tokens, sampling, stream.receive)
        self.loop.submit(asked)
        return stream

    def _grammar(self, target: Target, request: GenerationRequest) -> Grammar | None:
        """Return what the answer must keep: the request's own rule, or the task's where the prompt is the task's."""
        if request.output is not None:
            return None if request.output.free else self._grammars.get(request.output)
        if target.spec is None or target.spec.output is None or not request.by_the_task:
            return None
        return self._grammars.of_task(target.name, target.spec.output)

    def _ask(self, target: Target, tokens: Sequence[int], ask: Ask, read: Callable[[Event], T | None]) -> Pending[T]:
        """Queue a request that one event answers; `read` makes the answer of it."""

        def receive(event: Event) -> None:
            if isinstance(event, FailedEvent):
                pending.give(event.error)
                return
            try:
                answer = read(event)
            except Exception as error:  # whoever waits must hear of it; the engine would only log it
                pending.give(error)
                return
            if answer is not None:
                pending.give(answer)

        request = self._request(target, tokens, ask, receive)
        pending = Pending[T](on_cancel=lambda: self.loop.cancel(request))
        self.loop.submit(request)
        return pending

    def _request(self, target: Target, tokens: Sequence[int], ask: Ask, sink: Sink) -> Request:
        """Return the engine's request, admitted by its asker.

        A task's versions share its part of the machine, the base has its own.
        """

        def checked(event: Event) -> None:
            wrong = None if isinstance(event, FailedEvent) else self.adapters.wrong_rules(target)
            if wrong is not None:
                request.cancelled = True
            sink(event if wrong is None else FailedEvent(wrong))

        named = target.task if target.spec is not None else self.base.name
        weight = 1.0 if named is None else self._weights.get(named, 1.0)
        # Which weights answer is known once they answer: another folder's, where that had the digest at hand first.
        told = sink if target.adapter is None else checked
        if target.digest is not None and target.task is not None and len(self._names) < MOST_ADAPTERS:
            self._names.setdefault(target.digest, f"{target.task}@{target.version}")
        owner = None if target.asker is None else target.asker.name
        request = Request(tuple(tokens), told, ask, target.adapter, _share(target), weight, owner)
        if target.asker is not None:
            target.asker.admit(request.room)
        return request

    def _read(self, target: Target, given: Input) -> tuple[TaskSpec, list[int]]:
        """Return the rules for an input and its tokens; to the bare base a text is just that, fields are a chat."""
        spec = target.spec or (self._raw if isinstance(given, str) else self._plain)
        return spec, encode_input(self._tokenizer, spec, _fields(given, input_field(spec.kind)))

    def _prompt(self, spec: TaskSpec, request: GenerationRequest) -> Sequence[int]:
        given = [request.text, request.token_ids, request.messages, request.fields]
        if sum(each is not None for each in given) != 1:
            raise InvalidRequest("give exactly one of text, token ids, messages or fields", param="prompt")
        if request.token_ids is not None:
            return request.token_ids
        if request.text is not None:
            # A plain task without a template: the text as it is.
            return encode_input(self._tokenizer, self._raw, {"prompt": request.text})
        if request.messages is not None:
            return encode_input(self._tokenizer, spec, {"messages": request.messages})
        assert request.fields is not None
        return encode_input(self._tokenizer, spec, request.fields)


def _base_spec(base: Base, tokenizer: Any) -> TaskSpec:
    """Return how the bare base is asked: its chat template where it has one."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    style = PromptSpec(style="chat", chat_template=template) if template else PromptSpec()
    return TaskSpec("generation", base.fingerprint, base.context_length, prompt=style)


def _fields(given: Input, name: str) -> Mapping[str, Any]:
    return {name: given} if isinstance(given, str) else given


def _share(target: Target) -> str | None:
    """Return whose part of the machine a request takes: the task's, or an asker's own of the task."""
    if target.asker is None:
        return target.task
    return f"{target.task or target.digest or ''}/{target.asker.name}"  # no task's name holds a slash


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector, dim=-1)


def _labelled(spec: TaskSpec, logits: torch.Tensor, tokens: int) -> Prediction:
    """Return the likeliest label (softmax), or for multilabel every label from one half on (sigmoid).

    With a calibration the logits are divided by its temperature first, and no label is given where the likeliest one is
    less likely than it asks for.
    """
    given = tuple(logits.tolist())
    temperature = 1.0 if spec.calibration is None else spec.calibration.temperature
    if spec.kind == "multilabel":
        values = torch.sigmoid(logits / temperature).tolist()
        probs = dict(zip(spec.labels, values, strict=True))
        chosen = tuple(label for label, value in probs.items() if value >= 0.5)
        return Prediction(labels=chosen, probs=probs, logits=given, prompt_tokens=tokens)
    # Below the highest, so that no logit divided by a small temperature becomes infinite where it counts.
    values = torch.softmax((logits - logits.max()) / temperature, dim=-1).tolist()
    probs = dict(zip(spec.labels, values, strict=True))
    least = None if spec.calibration is None else spec.calibration.reject_below
    label = None if least is not None and max(values) < least else spec.labels[int(logits.argmax())]
    return Prediction(label=label, probs=probs, logits=given, prompt_tokens=tokens)
