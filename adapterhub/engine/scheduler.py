"""Who runs in the next step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from adapterhub.errors import Overloaded

from .request import FailedEvent, Request, Row
from .slots import Slots


@dataclass(frozen=True)
class Limits:
    """Bounds of the engine.

    `rows` decode at once; `step_tokens` of new prompts enter a step (one longer prompt may enter alone);
    `cache_tokens` is rows times the longest row's room; `queue` requests wait at most.
    """

    rows: int = 32
    step_tokens: int = 1024
    cache_tokens: int = 65536
    queue: int = 4096


@dataclass(frozen=True)
class Plan:
    """The rows of one step: those that decode (the first rows of the cache, in order), those that start."""

    decode: tuple[Row, ...]
    start: tuple[Row, ...]


class Scheduler:
    """First come, first served, as slots, cache room and the token budget allow."""

    def __init__(self, limits: Limits, slots: Slots) -> None:
        self.limits = limits
        self._slots = slots
        self.waiting: deque[Request] = deque()
        self.running: list[Row] = []

    def add(self, request: Request) -> None:
        """Queue a request; raises Overloaded where the queue is full."""
        if len(self.waiting) >= self.limits.queue:
            raise Overloaded(f"{len(self.waiting)} requests are waiting already; try again later")
        self.waiting.append(request)

    def schedule(self) -> Plan:
        """Return the rows of the next step; the new ones hold their slots already."""
        decode = tuple(self.running)
        started: list[Row] = []
        budget = self.limits.step_tokens
        while self.waiting:
            request = self.waiting[0]
            if request.cancelled:
                self.waiting.popleft()
                continue
            size = len(request.tokens)
            if started and size > budget:
                break
            if not self._fits(request, started):
                break
            try:
                slot = self._slots.acquire(request.adapter)
            except Exception as error:  # whatever is wrong with this adapter is this request's error, nobody else's
                self.waiting.popleft()
                request.tell(FailedEvent(error))
                continue
            if slot is None:
                break
            self.waiting.popleft()
            budget -= size
            started.append(Row(request, slot, generator=_generator(request)))
        return Plan(decode, tuple(started))

    def _fits(self, request: Request, started: list[Row]) -> bool:
        if request.sampling is None:
            return True
        rows = self.running + [row for row in started if row.request.sampling]
        longest = max([request.room, *(row.request.room for row in rows)])
        return len(rows) < self.limits.rows and (len(rows) + 1) * longest <= self.limits.cache_tokens


def _generator(request: Request) -> torch.Generator | None:
    if request.sampling is None or request.sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if request.sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.sampling.seed)
    return generator
