"""A hub without a model: it keeps AdapterHub's promises (threads, order, cancel) with text anyone can compute.

Every answer depends on the adapter's digest and the prompt, so one from the wrong adapter shows. Prompts that hold
`wait` go on, token by token, only as `allow` is called; `boom` fails in the engine, `late` fails after three tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.engine.tally import AdapterCounts, Residency
from adapterhub.errors import Cancelled, CorruptAdapter, InvalidRequest, PromptTooLong, RefNotFound
from adapterhub.runtime.stream import Chunk, TokenLogprob
from adapterhub.runtime.target import (
    AdapterNumbers,
    AdapterState,
    GenerationRequest,
    ModelInfo,
    Prediction,
    Target,
)

BASE = "tiny"
FINGERPRINT = "sha256:" + "ab" * 32
KINDS: dict[str, Any] = {"orders": "generation", "notes": "generation", "tone": "classification", "tags": "multilabel"}
LABELS = ("calm", "cross", "glad")


def digest_of(task: str) -> str:
    return "sha256:" + hashlib.sha256(task.encode()).hexdigest()


def answer_text(digest: str | None, prompt: str, seed: int | None = None, temperature: float = 0.0) -> Iterator[str]:
    """Yield the endless answer, a character a token."""
    key = f"{digest}|{prompt}|{seed if temperature else None}"
    for index in itertools.count():
        yield "abcdefgh é"[hashlib.sha256(f"{key}|{index}".encode()).digest()[0] % 10]


class FakeStream:
    """One generation on a thread of its own."""

    def __init__(self, run: Callable[[FakeStream], Iterator[Chunk]]) -> None:
        self._items: list[Chunk | Exception] = []
        self._listeners: list[Callable[[Chunk | Exception], None]] = []
        self._lock = threading.Lock()
        self.cancelled = threading.Event()
        self.ended = threading.Event()
        threading.Thread(target=self._work, args=(run,), daemon=True).start()

    def _work(self, run: Callable[[FakeStream], Iterator[Chunk]]) -> None:
        try:
            for chunk in run(self):
                self._tell(chunk)
        except Exception as error:
            self._tell(error)
        finally:
            self.ended.set()

    def _tell(self, item: Chunk | Exception) -> None:
        with self._lock:
            self._items.append(item)
            for listener in self._listeners:
                listener(item)

    def subscribe(self, listener: Callable[[Chunk | Exception], None]) -> None:
        with self._lock:
            for item in self._items:
                listener(item)
            self._listeners.append(listener)

    def cancel(self) -> None:
        self.cancelled.set()


class FakeHub:
    """What the server asks of AdapterHub."""

    def __init__(self) -> None:
        self.base = SimpleNamespace(name=BASE, public_id="org/tiny", fingerprint=FINGERPRINT)
        self.requests: list[GenerationRequest] = []
        self.streams: list[FakeStream] = []
        self.inputs: list[Any] = []
        self.freed = threading.Event()
        self.closed = False
        self.threads: set[str] = set()
        self._permits = threading.Semaphore(0)

    def allow(self, tokens: int = 1) -> None:
        self._permits.release(tokens)

    def target(self, model: str) -> Target:
        self.threads.add(threading.current_thread().name)
        if model == BASE:
            return Target(name=BASE, spec=None, digest=None, version=None)
        task, _, rest = model.partition("@")
        if task == "crash":
            raise RuntimeError("secret internals of /etc/passwd")
        if task == "broken":
            raise CorruptAdapter("the files of 'broken@1' do not hash to its digest; restore them")
        digest = digest_of(task)
        if task not in KINDS or not (rest in ("", "1", "prod") or (rest and digest.startswith(rest))):
            raise RefNotFound(f"no task {model!r}; close names: orders")
        labels = () if KINDS[task] == "generation" else LABELS
        prompt = PromptSpec("chat", template="{prompt} / {shop}") if task == "notes" else PromptSpec("chat")
        spec = TaskSpec(KINDS[task], FINGERPRINT, 64, labels, prompt)
        return Target(name=model, spec=spec, digest=digest, version=1)

    def models(self) -> list[ModelInfo]:
        base = ModelInfo(id=BASE, parent=None, created=1, digest=None, kind="base")
        return [base, *(ModelInfo(task, BASE, 2, digest_of(task), kind) for task, kind in sorted(KINDS.items()))]

    def model(self, name: str) -> ModelInfo:
        digest = self.target(name).digest
        return replace(next(info for info in self.models() if info.digest == digest), id=name)

    def stats(self) -> Mapping[str, float]:
        return {"running": 1.0, "waiting": 0.0, "resident_adapters": 2.0, "adapter_loads": 3.0}

    def adapter_counts(self) -> list[AdapterNumbers]:
        counts = AdapterCounts(started=4, queue_seconds=0.5, loads=2, evictions=1, prefix_hits=3, prefix_tokens=96)
        return [AdapterNumbers("orders@1", counts, Residency(slot=True, pinned=True))]

    def adapters(self) -> list[AdapterState]:
        return []

    def close(self, drain_seconds: float = 0) -> None:
        self.closed = True
        for stream in self.streams:
            stream.cancel()

    def answers(
        self, target: Target, inputs: Sequence[str | Mapping[str, Any]], *, cancelled: threading.Event
    ) -> Iterator[Prediction]:
        self.threads.add(threading.current_thread().name)
        self.inputs.append(inputs)
        while "wait" in inputs and not self._permits.acquire(timeout=0.01):
            if cancelled.is_set():
                self.freed.set()
                raise Cancelled("the asker has gone away")
        yield from (self._predict(target, each) for each in inputs)

    def _predict(self, target: Target, item: str | Mapping[str, Any]) -> Prediction:
        text = item if isinstance(item, str) else item.get("text")
        if text is None:
            raise InvalidRequest("the field 'text' is missing; there is nothing to read", param="text")
        first = len(text) % 3
        probs = {label: 0.8 if index == first else 0.1 for index, label in enumerate(LABELS)}
        assert target.spec is not None
        if target.asker is not None:
            target.asker.admit(len(text))
        many = target.spec.kind == "multilabel"
        return Prediction(
            label=None if many else LABELS[first],
            labels=(LABELS[first],) if many else None,
            probs=probs,
            completion=None,
            prompt_tokens=len(text),
            completion_tokens=0,
        )

    def generate(self, target: Target, request: GenerationRequest) -> FakeStream:
        self.threads.add(threading.current_thread().name)
        prompt = prompt_text(request)
        if len(prompt) > 1000:
            raise PromptTooLong(f"{len(prompt)} tokens are more than the 1000 this task takes", param="prompt")
        if target.asker is not None:
            target.asker.admit(len(prompt) + (request.max_tokens or 8))
        self.requests.append(request)
        stream = FakeStream(lambda stream: self._tokens(stream, target, request, prompt))
        self.streams.append(stream)
        return stream

    def _tokens(self, stream: FakeStream, target: Target, request: GenerationRequest, prompt: str) -> Iterator[Chunk]:
        if "boom" in prompt:
            raise CorruptAdapter("the adapter could not be loaded")
        limit = request.max_tokens or 8
        for count, token in enumerate(answer_text(target.digest, prompt, request.seed, request.temperature), 1):
            while "wait" in prompt and not self._permits.acquire(timeout=0.01):
                if stream.cancelled.is_set():
                    break
            if stream.cancelled.is_set():
                raise Cancelled("the request was cancelled")
            if "late" in prompt and count == 4:
                raise RuntimeError("secret internals")
            stop = token in request.stop
            text = "" if stop else token
            reason = "stop" if stop else "length" if count == limit else None
            logprobs = None
            if request.logprobs is not None:
                top = tuple((chr(97 + k), k, -1.0 - k if k else float("-inf")) for k in range(request.logprobs))
                logprobs = (TokenLogprob(token, ord(token), -0.5, top, token.encode()),)
            yield Chunk(text, (ord(token),), logprobs, reason, len(prompt), count)  # type: ignore[arg-type]
            if reason:
                return


def prompt_text(request: GenerationRequest) -> str:
    if request.text is not None:
        return request.text
    if request.token_ids is not None:
        return "".join(map(chr, request.token_ids))
    if request.fields is not None:
        return "|".join(f"{key}={value}" for key, value in sorted(request.fields.items()))
    assert request.messages is not None
    return "|".join(f"{turn['role']}:{turn['content']}" for turn in request.messages)


def eventually(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Ask `check` until it holds; the bound only ends a test that has failed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.005)
    return check()
