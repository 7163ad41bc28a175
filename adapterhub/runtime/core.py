"""A loaded base: tokenizer, adapters in host memory, and the engine's thread; from fields to events and back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from adapterhub.base.load import compute_dtype, load_backbone, load_tokenizer
from adapterhub.base.source import Base
from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.data.tokens import check_length, encode_input
from adapterhub.engine.engine import Engine
from adapterhub.engine.loop import EngineLoop
from adapterhub.engine.request import Event, FailedEvent, LogitsEvent, Request, Sampling
from adapterhub.engine.scheduler import Limits
from adapterhub.errors import InvalidRequest, PromptTooLong, UnsupportedRequest

from .adapters import AdapterCache
from .pending import Pending
from .stream import Chunk, GenerationStream
from .target import GenerationRequest, Prediction, Target

DEFAULT_MAX_TOKENS = 256

Input = str | Mapping[str, Any]


class LoadedBase:
    """One base in memory, and the three ways to ask it."""

    def __init__(
        self, base: Base, precision: str, device: str, threads: int | None, limits: Limits, resident: int
    ) -> None:
        self.base = base
        dtype = compute_dtype(precision, device)
        self._tokenizer = load_tokenizer(base, require_pad=False)
        self.adapters = AdapterCache(base.name, base.fingerprint, dtype)
        model = load_backbone(base, dtype, device)
        self._stop_ids = _stop_ids(model, self._tokenizer)
        engine = Engine(model, base.context_length, limits=limits, resident=resident)
        self.loop = EngineLoop(engine, threads=threads or default_threads())
        self._plain = _base_spec(base, self._tokenizer)
        self._raw = replace(self._plain, prompt=PromptSpec())

    def stats(self) -> Mapping[str, float]:
        """Return the engine's counters."""
        engine = self.loop.engine
        return {
            "running": len(engine.scheduler.running),
            "waiting": len(engine.scheduler.waiting),
            "resident_adapters": len(engine.slots.resident),
            "adapter_loads": engine.slots.loads,
            "adapter_evictions": engine.slots.evictions,
            "kv_cache_bytes": engine.runner.cache.bytes if engine.runner.cache else 0,
        }

    def start_classification(self, target: Target, given: Input) -> Pending:
        """Queue one text; raises what is wrong with it at once."""
        spec = target.spec
        assert spec is not None
        tokens = encode_input(self._tokenizer, spec, _fields(given, "text"))
        check_length(tokens, spec)
        request = Request(tuple(tokens), lambda event: receive(event), target.adapter)
        pending = Pending(on_cancel=lambda: self.loop.cancel(request))

        def receive(event: Event) -> None:
            if isinstance(event, FailedEvent):
                pending.give(event.error)
            elif isinstance(event, LogitsEvent):
                pending.give(_labelled(spec, event.logits, len(tokens)))

        self.loop.submit(request)
        return pending

    def start_completion(self, target: Target, options: Mapping[str, Any], given: Input) -> Pending:
        """Queue one prompt for its completion; raises what is wrong with it at once."""
        stream = self.start_generation(target, GenerationRequest(fields=_fields(given, "prompt"), **options))
        pending = Pending(on_cancel=stream.cancel)
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
            raise UnsupportedRequest(f"{target.name!r} is a {spec.kind} task; ask it to classify", param="model")
        tokens = self._prompt(spec, request)
        sampling = self._sampling(spec, request, len(tokens))
        stream: GenerationStream

        def cancel() -> None:
            self.loop.cancel(asked)

        stream = GenerationStream(self._tokenizer, len(tokens), request.stop, request.min_tokens, cancel)
        asked = Request(tuple(tokens), stream.receive, target.adapter, sampling)
        self.loop.submit(asked)
        return stream

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

    def _sampling(self, spec: TaskSpec, request: GenerationRequest, size: int) -> Sampling:
        """Return the engine's sampling; a limit the request does not give is what fits, at most DEFAULT_MAX_TOKENS."""
        room = min(spec.max_length, self.base.context_length) - size
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {size} tokens; {spec.max_length} is the most that prompt and answer may take",
                param="prompt",
            )
        wanted = request.max_tokens if request.max_tokens is not None else min(room, DEFAULT_MAX_TOKENS)
        if wanted > room:
            raise PromptTooLong(
                f"the prompt has {size} tokens and max_tokens is {wanted}; together at most {size + room} fit",
                param="max_tokens",
            )
        _check_ranges(request, wanted)
        return Sampling(
            max_tokens=wanted,
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            stop_ids=self._stop_ids,
            ignore_eos=request.ignore_eos,
            logprobs=request.logprobs,
        )


def default_threads() -> int:
    """Return torch threads to use: $OMP_NUM_THREADS, else the cores this process may use, one left free above two.

    More threads than free cores collapse throughput by an order of magnitude or two.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores <= 2 else cores - 1


def _base_spec(base: Base, tokenizer: Any) -> TaskSpec:
    """Return how the bare base is asked: its chat template where it has one."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    style = PromptSpec(style="chat", chat_template=template) if template else PromptSpec()
    return TaskSpec("generation", base.fingerprint, base.context_length, prompt=style)


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's EOS, and what the base's generation config names besides."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = said if isinstance(said, list) else [said]
    return frozenset(int(token) for token in [*named, tokenizer.eos_token_id] if token is not None)


def _fields(given: Input, name: str) -> Mapping[str, Any]:
    return {name: given} if isinstance(given, str) else given


def _labelled(spec: TaskSpec, logits: torch.Tensor, tokens: int) -> Prediction:
    """Return the likeliest label (softmax), or for multilabel every label from one half on (sigmoid)."""
    if spec.kind == "multilabel":
        values = torch.sigmoid(logits).tolist()
        probs = dict(zip(spec.labels, values, strict=True))
        chosen = tuple(label for label, value in probs.items() if value >= 0.5)
        return Prediction(labels=chosen, probs=probs, prompt_tokens=tokens)
    values = torch.softmax(logits, dim=-1).tolist()
    probs = dict(zip(spec.labels, values, strict=True))
    return Prediction(label=spec.labels[int(logits.argmax())], probs=probs, prompt_tokens=tokens)


def _check_ranges(request: GenerationRequest, max_tokens: int) -> None:
    """Raise InvalidRequest naming the first setting outside its range."""
    checks: tuple[tuple[str, float, bool, str], ...] = (
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
        ("min_tokens", request.min_tokens, 0 <= request.min_tokens <= max_tokens, f"from 0 to {max_tokens}"),
        ("temperature", request.temperature, 0 <= request.temperature < math.inf, "0 or more"),
        ("top_p", request.top_p, 0 < request.top_p <= 1, "above 0 and at most 1"),
        ("top_k", request.top_k, request.top_k >= 0, "0 or more"),
        ("seed", request.seed or 0, -(2**63) <= (request.seed or 0) < 2**63, "a 64-bit integer"),
        ("logprobs", request.logprobs or 0, 0 <= (request.logprobs or 0) <= 20, "from 0 to 20"),
    )
    for name, value, fine, allowed in checks:
        if not fine:
            raise InvalidRequest(f"{name} is {value}; it must be {allowed}", param=name)
    if any(not stop for stop in request.stop):
        raise InvalidRequest("a stop string is empty; it would stop everything", param="stop")
