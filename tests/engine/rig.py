"""A scheduler with everything around it but the forward: rows say tokens as fast as they are planned."""

from __future__ import annotations

from typing import Any

import torch

from adapterhub.engine.kv_cache import CacheShape, KVCache
from adapterhub.engine.loader import Loader
from adapterhub.engine.plan import Plan
from adapterhub.engine.request import Adapter, Ask, Event, FailedEvent, Request, Row, Sampling
from adapterhub.engine.scheduler import Limits, Scheduler
from adapterhub.engine.slots import Slots
from adapterhub.engine.spans import planned
from adapterhub.engine.tiers import Tiers

from .stand_ins import Disk, prepare, settle


class Rig:
    def __init__(self, *, resident: int = 4, host_bytes: int = 10_000, causal: bool = True, **limits: int) -> None:
        self.limits = Limits(**limits)
        self.disk = Disk()
        shape = CacheShape(layers=1, heads=1, head_dim=1)
        cache = KVCache(shape, torch.float32, torch.device("cpu"), self.limits.cache_tokens)
        self.cache = cache if causal else None
        self.slots = Slots(resident, lambda slot, host: None, lambda slot: None)
        self.loader = Loader(host_bytes, prepare)
        self.freed: list[str] = []
        self.tiers = Tiers(self.slots, self.loader, self.freed.append)
        self.scheduler = Scheduler(self.limits, self.tiers, self.cache)
        self.plans: list[Plan] = []
        self.done: list[Request] = []
        self.events: dict[int, list[Event]] = {}

    def ask(self, size: int, ask: Ask | int, adapter: str | None = None, **options: Any) -> Request:
        """Queue a prompt of `size` tokens; a number asks for so many tokens."""
        what = Sampling(ask, temperature=0.0) if isinstance(ask, int) else ask
        events: list[Event] = []
        given: Adapter | None = None if adapter is None else self.disk.adapter(adapter)
        request = Request(tuple(range(1, size + 1)), events.append, what, given, **options)
        self.events[request.id] = events
        self.scheduler.add(request)
        return request

    def step(self, *, settled: bool = True) -> Plan:
        """Plan one step and act as if it ran; `settled` lets every read end first."""
        if settled:
            settle(self.loader)
        self.scheduler.drop_cancelled()
        plan = self.scheduler.schedule()
        self.plans.append(plan)
        finished: list[Row] = []
        for row in plan.decode:
            row.output.append(0)
        for span in plan.prefill:
            if span.row.request.sampling is not None:
                if span.last:
                    span.row.output.append(0)
            elif planned(span.row) and span.row not in finished:
                finished.append(span.row)
        for row in self.scheduler.running:
            sampling = row.request.sampling
            if sampling is not None and len(row.output) >= sampling.max_tokens:
                finished.append(row)
        for row in finished:
            self.scheduler.finish(row)
            self.done.append(row.request)
        return plan

    def steps_until(self, request: Request, most: int = 500) -> int:
        """Step until the request is done, and return in how many."""
        for count in range(1, most + 1):
            self.step()
            if request in self.done:
                return count
        raise AssertionError(f"request {request.id} was not done in {most} steps")

    def run(self, most: int = 2000) -> None:
        """Step until nothing is left."""
        for _ in range(most):
            if not self.scheduler.running and not len(self.scheduler.waiting):
                return
            self.step()
        raise AssertionError("it did not end")

    def started(self, plan: Plan) -> list[Request]:
        """Return the requests whose first span is in the plan."""
        return [span.row.request for span in plan.prefill if span.past == 0 and not span.branches]

    def error(self, request: Request) -> Exception | None:
        return next((event.error for event in self.events[request.id] if isinstance(event, FailedEvent)), None)

    def assert_empty(self) -> None:
        """Nothing is held any more, in any table."""
        assert not self.scheduler.running
        assert not len(self.scheduler.waiting)
        assert not len(self.scheduler.counters)
        assert self.cache is None or self.cache.bytes == 0
        assert not self.tiers._users
        assert all(users == 0 for users in self.slots._users)
        assert all(load.holds == 0 for load in self.loader._loads.values())
        assert not self.loader.loading
