"""`AdapterHub`: one base in memory, every task's adapter on it, answers by ref."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from adapterhub.base.source import Base, open_base
from adapterhub.engine.scheduler import Limits
from adapterhub.errors import AdapterHubError, NameTaken, RefNotFound, UnsupportedRequest, UsageError
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .core import Input, LoadedBase
from .pending import Pending, start_each
from .stream import GenerationStream
from .target import GenerationRequest, ModelInfo, Prediction, Target

log = logging.getLogger(__name__)

# Rows of one call that are in the engine at once: enough to fill its batches, few enough for flat memory.
WINDOW = 256


class AdapterHub:
    """Answers refs on one base. Thread-safe; use as a context manager, or call `close`.

    `base` is a name or a Base; None takes the base of `registry`'s first ref asked for. `registry` is a folder, a
    Registry, or None for the usual place. `precision` is "auto", "float32" or "bfloat16".
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
    ) -> None:
        located = registry if registry is not None else Registry.locate()
        self.registry = located if isinstance(located, Registry) else Registry(Path(located))
        self._options = (precision, device, threads, Limits(rows=max_rows, cache_tokens=cache_tokens), resident)
        self._lock = threading.Lock()
        self._core: LoadedBase | None = None
        if base is not None:
            self._core = LoadedBase(base if isinstance(base, Base) else open_base(base), *self._options)

    @property
    def base(self) -> Base:
        """The base in memory; raises UsageError before it is known."""
        return self._loaded().base

    def target(self, model: str) -> Target:
        """Return who answers to `model`, a ref or the base's name.

        Raises RefNotFound, BaseMismatch, CorruptAdapter, UnsafeAdapter.
        """
        if self._core is not None and model in {self._core.base.name, self._core.base.public_id}:
            self._check_unshadowed(model)
            return Target(model)
        version = self.registry.resolve(model)
        core = self._core_for(version)
        found = core.adapters.get(model, version.path, version.digest, version.base, version.base_fingerprint)
        return Target(model, found.spec, version.digest, version.version, found.adapter)

    def predict(self, ref: str, inputs: Sequence[Input], **options: Any) -> list[Prediction]:
        """Return one answer an input, in order. A bare text is the field `text`, or `prompt` in generation.

        `options` are fields of GenerationRequest; generation is greedy unless `temperature` says otherwise.
        """
        return list(self.answers(self.target(ref), inputs, **options))

    def predict_folder(self, folder: Path, inputs: Sequence[Input], **options: Any) -> list[Prediction]:
        """Answer as `predict` does with an adapter folder that is not published."""
        found = self._loaded().adapters.read(str(folder), folder)
        target = Target(str(folder), found.spec, found.adapter.digest, None, found.adapter)
        return list(self.answers(target, inputs, **options))

    def answers(
        self, target: Target, inputs: Iterable[Input], *, cancelled: threading.Event | None = None, **options: Any
    ) -> Iterator[Prediction]:
        """Yield one answer an input, in order, a bounded number of them running at once.

        An input that cannot be answered raises when its turn comes, after the answers before it. What still runs when
        the caller stops asking, or sets `cancelled`, is given up.
        """
        core = self._loaded()
        start: Callable[[Any], Pending] = (
            partial(core.start_classification, target)
            if target.spec is not None and target.spec.kind != "generation"
            else partial(core.start_completion, target, {"temperature": 0.0, **options})
        )
        running: deque[Pending] = deque()
        try:
            for pending in start_each(start, inputs):
                running.append(pending)
                while running and (len(running) >= WINDOW or running[0].done):
                    yield running.popleft().wait(cancelled)
            while running:
                yield running.popleft().wait(cancelled)
        finally:
            for pending in running:
                pending.cancel()

    def classify(
        self, target: Target, inputs: Sequence[Input], cancelled: threading.Event | None = None
    ) -> list[Prediction]:
        """Return labels and probabilities for each input; blocks. Raises UnsupportedRequest for other targets."""
        if target.spec is None or target.spec.kind == "generation":
            raise UnsupportedRequest(f"{target.name!r} generates text; it has no labels to choose from", param="model")
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

    def stats(self) -> Mapping[str, float]:
        """Return the engine's counters: rows running and waiting, resident adapters, loads, evictions, cache bytes."""
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
                self._core = LoadedBase(open_base(version.base), *self._options)
            return self._core


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


def _seconds(version: Version) -> int:
    return int(datetime.fromisoformat(version.created_at).timestamp())
