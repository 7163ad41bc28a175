"""The engine: schedule, run, postprocess."""

from __future__ import annotations

from typing import Any

import torch

from adapterhub.errors import CorruptAdapter, InvalidRequest, PromptTooLong, UnsupportedRequest, UsageError

from .request import Event, FailedEvent, LogitsEvent, Request, Row, TokenEvent
from .runner import Outcome, Runner
from .sampler import sample
from .scheduler import Limits, Plan, Scheduler
from .slots import Slots


class Engine:
    """Answers requests of many adapters in shared batches. Not thread-safe: one thread owns it (see EngineLoop).

    `model` is a frozen transformers causal LM or encoder; `context` the most positions a row may take.
    """

    def __init__(self, model: Any, context: int, *, limits: Limits | None = None, resident: int = 32) -> None:
        self.limits = limits or Limits()
        if resident < 1 or self.limits.rows < 1:
            raise UsageError(f"resident is {resident} and rows is {self.limits.rows}; both must be at least 1")
        self.runner = Runner(model, cache_tokens=self.limits.cache_tokens)
        self.context = context
        self.slots = Slots(resident, self.runner.load, self.runner.unload)
        self.scheduler = Scheduler(self.limits, self.slots)

    def check(self, request: Request) -> None:
        """Raise what is wrong with a request before it is queued: PromptTooLong, InvalidRequest, UnsupportedRequest."""
        size, vocabulary = len(request.tokens), self.runner.vocabulary
        if not size:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        bad = next((t for t in request.tokens if not 0 <= t < vocabulary), None)
        if bad is not None:
            raise InvalidRequest(f"token id {bad} is outside the vocabulary of {vocabulary}", param="prompt")
        limit = min(self.context, self.limits.cache_tokens)
        if request.room > limit:
            asked = f" and max_tokens {request.sampling.max_tokens}" if request.sampling else ""
            raise PromptTooLong(
                f"the prompt has {size} tokens{asked}; together at most {limit} fit", param="max_tokens"
            )
        if request.sampling is not None and self.runner.output is None:
            raise UnsupportedRequest("this base is an encoder; it classifies but does not generate", param="model")
        if request.sampling is None and (request.adapter is None or request.adapter.pooling is None):
            raise UnsupportedRequest("only an adapter with a classification head can classify", param="model")

    def add(self, request: Request) -> None:
        """Queue a request; raises as `check` does, or Overloaded."""
        self.check(request)
        self.scheduler.add(request)

    @property
    def busy(self) -> bool:
        """True while anything waits or runs."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    @torch.inference_mode()
    def step(self) -> None:
        """Advance every running row by one token and start what fits."""
        self._drop_cancelled()
        plan = self.scheduler.schedule()
        if not plan.decode and not plan.start:
            return
        try:
            outcome = self.runner.run(plan)
        except Exception as error:  # one forward serves all rows, so they fail together; the engine goes on
            self._fail(plan, error)
            return
        self._postprocess(plan, outcome)

    @torch.inference_mode()
    def fail_all(self, error: Exception) -> None:
        """End everything waiting and running with an error; touches no tensor before everybody is told."""
        while self.scheduler.waiting:
            self.scheduler.waiting.popleft().tell(FailedEvent(error))
        self._fail(Plan(tuple(self.scheduler.running), ()), error)

    def _postprocess(self, plan: Plan, outcome: Outcome) -> None:
        for row in plan.start:
            if row.request.sampling is not None:
                self.scheduler.running.append(row)
        for row, logits in outcome.heads:
            self.slots.release(row.slot)
            row.request.tell(self._head_event(row, logits))
        if outcome.tokens is not None:
            for row, event in zip(outcome.generating, sample(outcome.tokens, outcome.generating), strict=True):
                self._advance(row, event)

    def _advance(self, row: Row, event: Event) -> None:
        done = True
        if isinstance(event, TokenEvent):
            row.output.append(event.token)
            done = event.finish is not None
        if done:
            self._remove(row)
        row.request.tell(event)

    def _head_event(self, row: Row, logits: torch.Tensor) -> Event:
        if bool(torch.isfinite(logits).all()):
            return LogitsEvent(logits)
        assert row.request.adapter is not None
        return FailedEvent(CorruptAdapter(f"{row.request.adapter.digest} produced NaN or infinite logits"))

    def _remove(self, row: Row) -> None:
        """Take a row out of the running ones; the last one moves into its place, in the cache too."""
        running = self.scheduler.running
        index, last = running.index(row), len(running) - 1
        assert self.runner.cache is not None
        self.runner.cache.free(index, last, row.length, running[last].length)
        running[index] = running[last]
        running.pop()
        self.slots.release(row.slot)

    def _drop_cancelled(self) -> None:
        self.scheduler.drop_cancelled()
        for row in [row for row in self.scheduler.running if row.request.cancelled]:
            self._remove(row)

    def _fail(self, plan: Plan, error: Exception) -> None:
        for row in plan.decode + plan.start:
            row.request.tell(FailedEvent(error))
        for row in plan.start:
            self.slots.release(row.slot)
        for row in plan.decode:
            self._remove(row)
