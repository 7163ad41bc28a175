"""A whole measurement: the models found, one load or a row of rising rates, and what came of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .drive import Drive, Load
from .endpoint import Endpoint
from .summary import Measured
from .timing import Timing
from .workload import Workload

Watch = Callable[[Load, Timing], None]


@dataclass(frozen=True)
class Report:
    """All that was measured, in order. `left_out` are rates that were not tried, as the last one ended the row."""

    endpoint: Endpoint
    workload: Workload
    runs: tuple[Measured, ...]
    left_out: tuple[float, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return any(run.interrupted for run in self.runs)

    def to_record(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        asked = self.workload
        return {
            "url": self.endpoint.url,
            "models": dict(zip(asked.models, asked.shares(), strict=True)),
            "popularity": asked.popularity.value,
            "prompt_words": asked.prompt_words,
            "max_tokens": asked.max_tokens,
            "ignore_eos": asked.ignore_eos,
            "route": "chat/completions" if asked.chat else "completions",
            "seed": asked.seed,
            "runs": [run.to_record() for run in self.runs],
            "left_out": list(self.left_out),
            "interrupted": self.interrupted,
        }


def bench(endpoint: Endpoint, workload: Workload, loads: Sequence[Load], watch: Watch = lambda _, __: None) -> Report:
    """Measure each load in turn, and stop after the first that saturates the server or is not answered at all.

    A workload without models asks those that the server lists. Ctrl-C ends it with what was measured so far. Each load
    has prompts and arrivals of its own, so that no cache knows them from the one before. Raises EndpointError where the
    server cannot be reached or lists no models.
    """
    return asyncio.run(_Bench(endpoint, workload, loads, watch).run())


@dataclass
class _Bench:
    endpoint: Endpoint
    workload: Workload
    loads: Sequence[Load]
    watch: Watch

    async def run(self) -> Report:
        if self.workload.models:
            await self.endpoint.reach()
        else:
            self.workload = replace(self.workload, models=tuple(await self.endpoint.models()))
        runs: list[Measured] = []
        for place, load in enumerate(self.loads):
            runs.append(await self._measure(load, replace(self.workload, seed=self.workload.seed + place)))
            last = runs[-1]
            if last.interrupted or last.saturated or (last.sent and not last.answered):
                break
        return Report(self.endpoint, self.workload, tuple(runs), tuple(self._rates(len(runs))))

    async def _measure(self, load: Load, workload: Workload) -> Measured:
        drive = Drive(self.endpoint, workload, load, lambda timing: self.watch(load, timing))
        begin = time.perf_counter()
        interrupted = False
        try:
            await drive.run()
        except asyncio.CancelledError:
            # Ctrl-C, as asyncio.run delivers it; swallowed, so that the report is returned and not lost.
            interrupted = True
        return Measured(load, tuple(drive.timings), drive.sent, time.perf_counter() - begin, interrupted)

    def _rates(self, done: int) -> Iterator[float]:
        return (load.rate for load in self.loads[done:] if load.rate is not None)
