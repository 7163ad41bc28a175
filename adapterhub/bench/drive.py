"""Requests sent as a load says: at their times whatever the server does, or as many at once as asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from .endpoint import Endpoint
from .timing import Timing, ask_once
from .workload import Ask, Workload, arrivals

Watch = Callable[[Timing], None]


@dataclass(frozen=True)
class Load:
    """How much is asked: `rate` requests a second by a Poisson process, else `concurrency` at a time without a pause.

    No more are sent after `requests` of them or after `seconds`, whichever comes first (one of both must be given).
    Those under way are waited for, each no longer than `timeout` seconds.
    """

    rate: float | None = None
    concurrency: int = 1
    requests: int | None = None
    seconds: float | None = None
    timeout: float = 600.0


@dataclass
class Drive:
    """A load at work; `timings` holds what has ended so far, also when it was cancelled half-way."""

    endpoint: Endpoint
    workload: Workload
    load: Load
    watch: Watch = lambda _: None
    timings: list[Timing] = field(default_factory=list)
    sent: int = 0
    _begin: float = 0.0

    async def run(self) -> None:
        """Send everything and wait for the answers."""
        self._begin = time.perf_counter()
        asks = islice(self.workload.asks(), self.load.requests)
        if self.load.rate is None:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.load.concurrency):
                    group.create_task(self._one_after_another(asks))
        else:
            async with asyncio.TaskGroup() as group:
                await self._at_their_times(group, asks, self.load.rate)

    async def _at_their_times(self, group: asyncio.TaskGroup, asks: Iterator[Ask], rate: float) -> None:
        for at, ask in zip(arrivals(rate, self.workload.seed), asks, strict=False):
            if self.load.seconds is not None and at > self.load.seconds:
                return
            await asyncio.sleep(max(0.0, at - self._clock()))
            group.create_task(self._one(ask, at))

    async def _one_after_another(self, asks: Iterator[Ask]) -> None:
        for ask in asks:
            now = self._clock()
            if self.load.seconds is not None and now > self.load.seconds:
                return
            await self._one(ask, now)

    def _clock(self) -> float:
        return time.perf_counter() - self._begin

    async def _one(self, ask: Ask, start: float) -> None:
        self.sent += 1
        timing = await ask_once(self.endpoint, ask, start, self._clock, self.load.timeout)
        self.timings.append(timing)
        self.watch(timing)
