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
        """Return the rows of the next step; the new ones hold their slots already.

        A request that must wait (for a row, for cache, for a slot) lets others pass that need none of what it waits
        for: classification needs no cache, and the base no slot. Generations never overtake one another.
        """
        decode = tuple(self.running)
        started: list[Row] = []
        kept: deque[Request] = deque()
        budget, generations_wait = self.limits.step_tokens, False
        while self.waiting:
            request = self.waiting.popleft()
            if request.cancelled:
                continue
            size, generates = len(request.tokens), request.sampling is not None
            if started and size > budget:
                kept.append(request)
                break
            if generates and (generations_wait or not self._fits(request, started)):
                generations_wait = True
                kept.append(request)
                continue
            row = self._start(request)
            if row is not None:
                budget -= size
                started.append(row)
            elif not request.failed:
                generations_wait = generations_wait or generates
                kept.append(request)
        self.waiting.extendleft(reversed(kept))
        return Plan(decode, tuple(started))

    def drop_cancelled(self) -> None:
        """Forget requests that were given up while they waited, so that they fill no queue."""
        if any(request.cancelled for request in self.waiting):
            self.waiting = deque(request for request in self.waiting if not request.cancelled)

    def _start(self, request: Request) -> Row | None:
        """Return the row of a request, or None: it failed (and was told), or every slot is in use."""
        try:
            generator = _generator(request)
            slot = self._slots.acquire(request.adapter)
        except Exception as error:  # whatever is wrong with this request or its adapter is its own error alone
            request.failed = True
            request.tell(FailedEvent(error))
            return None
        return None if slot is None else Row(request, slot, generator=generator)

    def _fits(self, request: Request, started: list[Row]) -> bool:
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
