"""`AdapterHub`: one base in memory, every task's adapter on it, answers by ref."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from adapterhub.base.source import Base, open_base
from adapterhub.engine.scheduler import Limits
from adapterhub.engine.tally import Residency
from adapterhub.errors import AdapterHubError, NameTaken, RefNotFound, UnsupportedRequest, UsageError
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .core import CoreOptions, Input, LoadedBase
from .pending import Pending, start_each
from .stream import GenerationStream
from .target import AdapterNumbers, AdapterState, Embedding, GenerationRequest, ModelInfo, Prediction, Score, Target

log = logging.getLogger(__name__)
T = TypeVar("T")
Given = TypeVar("Given")

# Rows of one call that are in the engine at once: enough to fill its batches, few enough for flat memory.
WINDOW = 256


class AdapterHub:
    """Answers refs on one base. Thread-safe; use as a context manager, or call `close`.

    `base` is a name or a Base; None takes the base of `registry`'s first ref asked for. `registry` is a folder, a
    Registry, or None for the usual place. `precision` is "auto", "float32" or "bfloat16".

    `threads` compute; None measures how many are best. `max_rows` requests share a batch, whose rows take at most
    `cache_tokens` positions of cache. `resident` adapters are ready to run at once, `host_bytes` of others wait in
    memory, and `prefix_bytes` hold beginnings of prompts that may come again (0: none). `weights` says how much of a
    busy machine a task gets beside one of weight 1, by the task's name; the bare base goes by its own. `reference` asks
    for the general network, slower and plainly right, which the fast one is held against.
    """

    def __init__(
        self,
        base: str | Base | None = None,
        registry: str | Path | Registry | None = None,
        *,
        precision: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        max_rows: int = 32,
        cache_tokens: int = 65536,
        resident: int = 32,
        host_bytes: int = 1 << 30,
        prefix_bytes: int = 256 << 20,
        weights: Mapping[str, float] | None = None,
        reference: bool = False,
    ) -> None:
        located = registry if registry is not None else Registry.locate()
        self.registry = located if isinstance(located, Registry) else Registry(Path(located))
        self._options = CoreOptions(
            precision=precision,
            device=device,
            threads=threads,
            limits=Limits(rows=max_rows, cache_tokens=cache_tokens),
            resident=resident,
            host_bytes=host_bytes,
            prefix_bytes=prefix_bytes,
            weights=dict(weights or {}),
            reference=reference,
        )
        self._lock = threading.Lock()
        self._core: LoadedBase | None = None
        if base is not None:
            self._core = LoadedBase(base if isinstance(base, Base) else open_base(base), self._options)

    @property
    def base(self) -> Base:
        """The base in memory; raises UsageError before it is known."""
        return self._loaded().base

    def target(self, model: str) -> Target:
        """Return who answers to `model`, a ref or the base's name.

        Only the small files of a version are read here; its weights are read, and checked against its digest, when it
        is first asked, and what is wrong with them is raised by that answer. Raises RefNotFound, BaseMismatch,
        AdapterError, CorruptAdapter (files that are damaged or gone), UnsafeAdapter.
        """
        if self._core is not None and model in {self._core.base.name, self._core.base.public_id}:
            self._check_unshadowed(model)
            return Target(model)
        version = self.registry.resolve(model)
        core = self._core_for(version)
        found = core.adapters.get(model, version.path, version.digest, version.base, version.base_fingerprint)
        return Target(model, found.spec, version.digest, version.version, found.adapter, version.task, found.rules)

    def load(self, refs: Iterable[str]) -> None:
        """Have these adapters read, checked and at hand before anybody asks for them; raises what is wrong with one."""
        if isinstance(refs, str):
            raise UsageError(f"the refs are one text, {refs[:40]!r}; give a list of refs")
        targets = [target for target in map(self.target, refs) if target.adapter is not None]
        for _ in _in_order(self._loaded().start_loading, targets, None):
            pass

    def pin(self, ref: str) -> None:
        """Have the adapter of `ref` read and checked now, and keep it ready to run whatever else is asked.

        A pin is the version's that `ref` means now. Raises UsageError where all of `resident` but one are pinned and
        for the bare base, and what `load` raises.
        """
        target = self.target(ref)
        digest, core = _digest(target), self._loaded()
        core.loop.pin(digest)
        try:
            core.start_loading(target).wait()
        except BaseException:
            core.loop.unpin(digest)
            raise

    def unpin(self, ref: str) -> None:
        """Let the adapter of `ref` make room for others again; raises UsageError for the bare base."""
        digest = _digest(self.target(ref))  # loads the base where none is
        self._loaded().loop.unpin(digest)

    def unload(self, ref: str) -> None:
        """Free the memory that the adapter of `ref` takes, once the last request that came before is done. Unpins it.

        Returns at once. Whoever asks it later has it read again. Raises UsageError for the bare base.
        """
        digest = _digest(self.target(ref))
        self._loaded().loop.forget(digest)

    def predict(self, ref: str, inputs: Sequence[Input], **options: Any) -> list[Prediction]:
        """Return one answer an input, in order. A bare text is the field `text`, or `prompt` in generation.

        `options` are fields of GenerationRequest; generation is greedy unless `temperature` says otherwise.
        """
        return list(self.answers(self.target(ref), inputs, **options))

    def folder(self, folder: Path) -> Target:
        """Return who answers for an adapter folder that is not published.

        Raises as `target` does, and FileMissing.
        """
        found = self._loaded().adapters.read(str(folder), folder)
        return Target(str(folder), found.spec, found.adapter.digest, None, found.adapter, rules=found.rules)

    def predict_folder(self, folder: Path, inputs: Sequence[Input], **options: Any) -> list[Prediction]:
        """Answer as `predict` does with an adapter folder that is not published."""
        return list(self.answers(self.folder(folder), inputs, **options))

    def answers(
        self, target: Target, inputs: Iterable[Input], *, cancelled: threading.Event | None = None, **options: Any
    ) -> Iterator[Prediction]:
        """Return an iterator of one answer an input, in order, a bounded number of them running at once.

        An input that cannot be answered raises when its turn comes, after the answers before it. What still runs when
        the caller stops asking, or sets `cancelled`, is given up.
        """
        core = self._loaded()
        kind = "generation" if target.spec is None else target.spec.kind
        start: Callable[[Input], Pending[Prediction]]
        if kind == "generation":
            start = partial(core.start_completion, target, {"temperature": 0.0, **options})
        elif kind == "embedding":
            start = partial(core.start_vector, target)
        else:
            start = partial(core.start_classification, target)
        return _in_order(start, inputs, cancelled)

    def embed(self, ref: str, inputs: Sequence[Input], pooling: str | None = None) -> list[Embedding]:
        """Return one vector an input, in order, of the base's hidden states as the adapter of `ref` changes them.

        `pooling` is "mean", "last" or "cls" (the first token); None takes what an embedding task was trained with, or
        what the base's sentence encoder was made with, else the mean. Vectors of an embedding task have length 1,
        others are as they are. Inputs are read by the task's rules. To the bare base a text stands as it is; fields go
        through its chat template. Raises InvalidRequest, PromptTooLong, and what `target` raises.
        """
        return list(self.embeddings(self.target(ref), inputs, pooling))

    def embeddings(
        self,
        target: Target,
        inputs: Iterable[Input],
        pooling: str | None = None,
        *,
        cancelled: threading.Event | None = None,
    ) -> Iterator[Embedding]:
        """Yield one vector an input, in order; runs ahead, raises and gives up as `answers` does."""
        core = self._loaded()
        start = partial(core.start_embedding, target, core.pooling(target, pooling))
        for each in _in_order(start, inputs, cancelled):
            # A copy outside of the engine's inference mode: a tensor like any other, that holds no batch in memory.
            yield replace(each, vector=each.vector.to("cpu", copy=True))

    def score(self, ref: str, prompt: Input, continuations: Sequence[str]) -> list[Score]:
        """Return how likely each continuation is after the prompt, in order; the prompt is computed once.

        The prompt is read as for a generation: by the task's rules, or to the bare base a text as it is and fields
        through its chat template. A continuation is tokenised by itself, without special tokens: no token spans the
        boundary, so a space between the two belongs to the continuation (" Oslo"), and no end of text is scored.
        Raises InvalidRequest, PromptTooLong, UnsupportedRequest, and what `target` raises.
        """
        return next(self.scores(self.target(ref), [(prompt, continuations)]))

    def scores(
        self,
        target: Target,
        asked: Iterable[tuple[Input, Sequence[str]]],
        *,
        ended: bool = False,
        cancelled: threading.Event | None = None,
    ) -> Iterator[list[Score]]:
        """Yield the scores of each (prompt, continuations), in order; runs ahead, raises and gives up as `answers`.

        With `ended` the token that ends a completion is scored after each, as a task learns to write it.
        """
        return _in_order(partial(self._loaded().start_scores, target, ended), asked, cancelled)

    def classify(
        self, target: Target, inputs: Sequence[Input], cancelled: threading.Event | None = None
    ) -> list[Prediction]:
        """Return labels and probabilities for each input; blocks. Raises UnsupportedRequest for other targets.

        A label is None where the task was made to reject what it is not sure of, and is not.
        """
        if target.spec is None or target.spec.kind in ("generation", "embedding"):
            what = "makes vectors" if target.spec and target.spec.kind == "embedding" else "generates text"
            raise UnsupportedRequest(f"{target.name!r} {what}; it has no labels to choose from", param="model")
        return list(self.answers(target, inputs, cancelled=cancelled))

    def generate(self, target: Target, request: GenerationRequest) -> GenerationStream:
        """Start a generation and return at once.

        Raises InvalidRequest, PromptTooLong, UnsupportedRequest, Overloaded and Cancelled before anything runs.
        """
        return self._loaded().start_generation(target, request)

    def models(self) -> list[ModelInfo]:
        """Return the names that can be asked: the base, then every task, its aliases and its versions on this base."""
        base = self._loaded().base
        found = [ModelInfo(base.name, None, 0, None, "base")]
        try:
            tasks = self.registry.tasks()
        except RefNotFound:
            return found
        for task in tasks:
            try:
                found += _infos(self.registry, task, base)
            except (AdapterHubError, ValueError) as error:  # one damaged task must not hide the others
                log.warning("task %r is left out of the list: %s", task, error)
        return found

    def model(self, name: str) -> ModelInfo:
        """Return what a name that can be asked stands for; raises as `target` does."""
        target, base = self.target(name), self.base
        if target.spec is None:
            return ModelInfo(name, None, 0, None, "base")
        version = self.registry.resolve(name)
        return ModelInfo(name, base.name, _seconds(version), target.digest, target.spec.kind)

    def adapters(self) -> list[AdapterState]:
        """Return every version on this base, and where its adapter is now."""
        core, base = self._loaded(), self.base
        found: list[AdapterState] = []
        try:
            tasks = self.registry.tasks()
        except RefNotFound:
            return found
        places = core.loop.engine.residency()
        for task in tasks:
            try:
                versions = [v for v in self.registry.versions(task) if v.base_fingerprint == base.fingerprint]
                found += [_state(version, places.get(version.digest, Residency())) for version in versions]
            except (AdapterHubError, ValueError) as error:  # one damaged task must not hide the others
                log.warning("task %r is left out of the list: %s", task, error)
        return found

    def adapter(self, ref: str) -> AdapterState:
        """Return where the adapter of `ref` is; raises UsageError for the bare base, and what `target` raises."""
        _digest(self.target(ref))
        version = self.registry.resolve(ref)
        return _state(version, self._loaded().loop.engine.residency().get(version.digest, Residency()))

    def adapter_counts(self) -> list[AdapterNumbers]:
        """Return what the engine did for each adapter that was asked, and for the base, under names people know."""
        return [] if self._core is None else self._core.adapter_counts()

    def stats(self) -> Mapping[str, float]:
        """Return the engine's numbers, such as rows running and waiting, and the threads that compute."""
        return {} if self._core is None else self._core.stats()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Stop; what still runs after `drain_seconds` ends with Cancelled."""
        if self._core is not None:
            self._core.loop.close(drain_seconds)

    def __enter__(self) -> AdapterHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loaded(self) -> LoadedBase:
        if self._core is None:
            raise UsageError("no base is loaded yet: name one, or ask for a ref first")
        return self._core

    def _check_unshadowed(self, name: str) -> None:
        """Raise NameTaken where a task has the base's name: neither may answer in the other's place."""
        try:
            self.registry.resolve(name)
        except RefNotFound:
            return
        raise NameTaken(f"{name!r} is the base and a task as well; ask for a version, such as {name + '@1'!r}")

    def _core_for(self, version: Version) -> LoadedBase:
        with self._lock:
            if self._core is None:
                self._core = LoadedBase(open_base(version.base), self._options)
            return self._core


def _digest(target: Target) -> str:
    if target.digest is None:
        raise UsageError(f"{target.name!r} is the bare base, which is always in memory; name a task")
    return target.digest


def _in_order(
    start: Callable[[Given], Pending[T]], inputs: Iterable[Given], cancelled: threading.Event | None
) -> Iterator[T]:
    """Yield the answer to each input, WINDOW of them running at once; the rest is given up when the caller stops.

    Raises UsageError for one text in place of several: its letters would be answered one by one.
    """
    if isinstance(inputs, str):
        raise UsageError(f"the inputs are one text, {inputs[:40]!r}; give a list of texts")
    running: deque[Pending[T]] = deque()
    try:
        for pending in start_each(start, inputs):
            running.append(pending)
            while running and (len(running) >= WINDOW or running[0].done):
                yield _first(running, cancelled)
        while running:
            yield _first(running, cancelled)
    finally:
        for pending in running:
            pending.cancel()


def _first(running: deque[Pending[T]], cancelled: threading.Event | None) -> T:
    """Wait for the first in line; it leaves the line once it is answered, so one that is given up is cancelled too."""
    answer = running[0].wait(cancelled)
    running.popleft()
    return answer


def _infos(registry: Registry, task: str, base: Base) -> list[ModelInfo]:
    """Return a task's names on this base: itself, its aliases, its versions."""
    versions = [v for v in registry.versions(task) if v.base_fingerprint == base.fingerprint]
    if not versions:
        return []
    kind = versions[0].spec().kind

    def info(name: str, version: Version) -> ModelInfo:
        return ModelInfo(name, base.name, _seconds(version), version.digest, kind)

    aliased = [info(f"{task}@{alias}", v) for v in versions for alias in v.aliases]
    return [
        info(task, registry.resolve(task)),
        *sorted(aliased, key=lambda each: each.id),
        *(info(v.ref, v) for v in versions),
    ]


def _state(version: Version, place: Residency) -> AdapterState:
    kind = version.spec().kind
    return AdapterState(
        version.ref,
        version.task,
        version.version,
        version.digest,
        kind,
        tuple(version.aliases),
        place.place,
        place.pinned,
    )


def _seconds(version: Version) -> int:
    return int(datetime.fromisoformat(version.created_at).timestamp())
