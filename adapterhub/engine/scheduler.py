"""Who runs in the next step, and with how many tokens."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from adapterhub.errors import Overloaded

from .fair import INPUT_COST, OUTPUT_COST, VirtualCounters
from .kv_cache import KVCache
from .parts import Parts
from .plan import Plan, Span
from .request import FailedEvent, Request, Row
from .spans import advance, next_span, planned
from .step_cost import StepCost
from .tally import Tally
from .tiers import Tiers, Waiter
from .waiting import Kind, Lane, Waiting, kind_of


@dataclass(frozen=True)
class Limits:
    """Bounds of the engine.

    `rows` hold places in the cache at once (an owner or share that runs none may go beyond, by a quarter in all). A
    step takes `step_tokens` of prompts while nothing decodes, and `chunk_tokens` beside rows that do, so that no prompt
    stalls them. `cache_tokens` positions of keys and values are kept at most; `queue` requests wait at most.
    """

    rows: int = 32
    step_tokens: int = 1024
    chunk_tokens: int = 128
    cache_tokens: int = 65536
    queue: int = 4096

    @property
    def spare_rows(self) -> int:
        """Rows beyond `rows` that are kept for owners, or shares of nobody's, that run none."""
        return max(1, self.rows // 4)


class _Wait(Enum):
    LOAD = "load"
    BUDGET = "budget"
    ROW = "row"
    CACHE = "cache"
    SLOT = "slot"


@dataclass
class _Step:
    """What is left of one step while it is planned; nothing ever becomes free again before its end."""

    full: int
    left: int
    placed: int
    placed_for: set[str]
    unfinished: dict[str, list[Row]]
    lanes: dict[str, list[Lane]]
    spans: list[Span] = field(default_factory=list)
    cache_is_full: bool = False
    loading: set[str] = field(default_factory=set)
    # The adapter that gets no new rows, so that its slot comes free for one who waits.
    draining: str | None = None


class Scheduler:
    """Continuous batching with chunked prefill, shared out by virtual token counters.

    In each step every decoding row says a token; what the budget leaves goes to prompts, a piece at a time, always to
    the share with the least counter. Within a share rows that have begun come first, then requests in their order. One
    that must wait lets others pass that need none of what it waits for: a row or cache (classification that fits the
    step needs neither), a slot (the base and resident adapters need none), loading (which holds up its own adapter's
    requests alone). Otherwise generations of one share never overtake one another.

    Where requests have several owners, each gets its part of a step (see Parts); decoding rows of an owner take turns
    then.
    """

    def __init__(
        self,
        limits: Limits,
        tiers: Tiers,
        cache: KVCache | None,
        restore: Callable[[Row], None] = lambda row: None,
        tally: Tally | None = None,
    ) -> None:
        self.limits = limits
        self._tally = tally or Tally()
        self._tiers, self._cache, self._restore = tiers, cache, restore
        self._chunk = min(limits.chunk_tokens, limits.step_tokens)
        self.counters = VirtualCounters()
        self.cost = StepCost()
        self._parts = Parts()
        self._said = 0
        self.waiting = Waiting()
        self.running: list[Row] = []

    def add(self, request: Request) -> None:
        """Queue a request, and have its adapter read; raises Overloaded where the queue is full."""
        if len(self.waiting) >= self.limits.queue:
            raise Overloaded(f"{len(self.waiting)} requests are waiting already; try again later")
        self.counters.join(request.queue)
        kind = kind_of(request, causal=self._cache is not None, chunk_tokens=self._chunk)
        self.waiting.push(self._tiers.join(request), kind)

    def schedule(self) -> Plan:
        """Return the next step. New rows are running from now on, with their slots and places."""
        plan = self._next()
        if not plan.decode and not plan.prefill and self._parts.bound:
            # Whoever was to be spared could not run; a step without anybody would be the last one.
            self._parts.lift()
            plan = self._next()
        return plan

    def _next(self) -> Plan:
        speaking = [row for row in self.running if row.output]
        step = self._begin(self._chunk if speaking else self.limits.step_tokens)
        said, read = Counter(row.request.owner for row in speaking), self._to_read(step)
        wanted = {owner: min(tokens, step.full) for owner, tokens in (said + read).items() if owner is not None}
        self._parts.begin(wanted, self.cost.fixed)
        decode = self._decode(speaking, read)
        turns = [self._turn(step, share) for share in step.unfinished.keys() | step.lanes.keys()]
        heapq.heapify(turns)
        while turns and step.left > 0:
            share = heapq.heappop(turns)[-1]
            if self._parts.left(self._owner(step, share)) <= 0:
                continue
            if self._go_on(step, share) or self._start_one(step, share):
                heapq.heappush(turns, self._turn(step, share))
        served = {row.request.queue for row in self.running}
        for share in step.loading - served:
            self.counters.lift(share, served)
        return Plan(decode, tuple(step.spans))

    def finish(self, row: Row) -> None:
        """Take a row out and free what it holds."""
        self.running.remove(row)
        if row.place is not None:
            assert self._cache is not None
            self._cache.release(row.place)
            row.place = None
        self._tiers.slots.release(row.slot)
        self._leave(row.request)

    def drop_cancelled(self) -> None:
        """Forget requests that were given up, whether they wait, load or run; what they hold is free at once."""
        for waiter in self.waiting.drop_cancelled():
            self._forget(waiter)
        for row in [row for row in self.running if row.request.cancelled]:
            self.finish(row)

    def clear(self) -> list[Request]:
        """Forget everybody who waits, and return them."""
        waiters = self.waiting.clear()
        for waiter in waiters:
            self._forget(waiter)
        return [waiter.request for waiter in waiters]

    def _begin(self, budget: int) -> _Step:
        unfinished: dict[str, list[Row]] = {}
        for row in self.running:
            if not planned(row):
                unfinished.setdefault(row.request.queue, []).append(row)
        placed = [row.request.group for row in self.running if row.place is not None]
        # With every row taken, the spare ones too, a long queue of generations is not looked at one by one.
        left_out = Kind.GENERATE if len(placed) >= self.limits.rows + self.limits.spare_rows else None
        lanes = {share: lanes for share in self.waiting.shares if (lanes := self.waiting.lanes(share, left_out))}
        return _Step(budget, budget, len(placed), set(placed), unfinished, lanes)

    def _to_read(self, step: _Step) -> Counter[str | None]:
        """Return how many tokens of prompts each owner has that could run now."""
        wanted: Counter[str | None] = Counter()
        for rows in step.unfinished.values():
            for row in rows:
                wanted[row.request.owner] += max(1, len(row.request.tokens) - row.computed)
        for lanes in step.lanes.values():
            for lane in lanes:
                request = lane.waiters[0].request
                if self._tiers.at_hand(lane.waiters[0]) and self._row_free(step, request):
                    wanted[request.owner] += len(request.tokens)
        return wanted

    def _decode(self, speaking: Sequence[Row], to_read: Container[str | None]) -> tuple[Row, ...]:
        """Return the rows that say a token, each charged for it: all but those beyond their owner's part.

        An owner with prompts to read has half of its part kept for them, else its rows would keep them out for ever.
        """
        chosen = []
        kept = {row.request.owner: self._parts.left(row.request.owner) / 2 for row in speaking}
        for row in sorted(speaking, key=lambda row: row.spoke) if self._parts.bound else speaking:
            owner = row.request.owner
            if self._parts.left(owner) > (kept[owner] if owner in to_read and self._parts.binds(owner) else 0):
                self._parts.spend(row.request.owner, 1)
                self._charge(row, OUTPUT_COST)
                self._said += 1
                row.spoke = self._said
                chosen.append(row)
        return tuple(chosen)

    def _owner(self, step: _Step, share: str) -> str | None:
        """Return whose a share is; all of a share is one owner's."""
        rows, lanes = step.unfinished.get(share), step.lanes.get(share)
        return rows[0].request.owner if rows else lanes[0].waiters[0].request.owner if lanes else None

    def _turn(self, step: _Step, share: str) -> tuple[bool, float, int, str]:
        """Return the key shares are served by: bounded owners last, the least counter, then who came first."""
        rows, lanes = step.unfinished.get(share), step.lanes.get(share)
        first = [rows[0].request.id] if rows else []
        first += [lanes[0].first] if lanes else []
        bounded = self._parts.binds(self._owner(step, share))
        return bounded, self.counters[share], min(first, default=0), share

    def _go_on(self, step: _Step, share: str) -> bool:
        """Plan a piece of a row of the share that has begun; return whether there was one and it fitted."""
        rows = step.unfinished.get(share, [])
        if not rows:
            return False
        span = next_span(rows[0], self._cut(step, rows[0]), alone=not step.spans)
        if span is None:
            step.lanes.pop(share, None)  # it goes first once there is room; nobody of its share passes it
            return False
        self._plan(step, span)
        if planned(rows[0]):
            rows.pop(0)
        return True

    def _cut(self, step: _Step, row: Row) -> int:
        """Return how many tokens the row may run; an owner's part cuts what can be cut."""
        if row.place is None or row.computed == len(row.request.tokens):
            return step.left
        return math.ceil(min(step.left, self._parts.left(row.request.owner)))

    def _start_one(self, step: _Step, share: str) -> bool:
        """Start the first request of the share that can; return whether there was one."""
        while lanes := step.lanes.get(share):
            lane = min(lanes, key=lambda lane: lane.first)
            waiter = lane.waiters[0]
            try:
                got = self._row(step, lane, waiter)
            except Exception as error:  # whatever is wrong with this request or its adapter is its own error alone
                self._take(step, share, lane)
                self._forget(waiter)
                waiter.request.tell(FailedEvent(error))
                continue
            if isinstance(got, _Wait):
                self._hold_back(step, share, lane, got)
                continue
            self._take(step, share, lane)
            self.running.append(got)
            counts = self._tally.of(got.request.digest)
            counts.started += 1
            counts.queue_seconds += time.perf_counter() - got.request.made_at
            if got.place is not None:
                step.placed += 1
                step.placed_for.add(got.request.group)
            step.unfinished.setdefault(share, []).append(got)
            return self._go_on(step, share)
        return False

    def _row(self, step: _Step, lane: Lane, waiter: Waiter) -> Row | _Wait:
        """Return the row of a request, or what it must wait for; raises what is wrong with it."""
        request = waiter.request
        if not self._tiers.ready(waiter):
            return _Wait.LOAD
        needs_place = lane.kind is Kind.GENERATE or (lane.kind is Kind.LONG and len(request.tokens) > step.full)
        if not needs_place and len(request.tokens) > step.left and step.spans:
            return _Wait.BUDGET
        if needs_place and step.cache_is_full:
            return _Wait.CACHE
        if needs_place and not self._row_free(step, request):
            return _Wait.ROW
        if request.adapter is not None and not self._slot_free(step, request.digest):
            step.draining = step.draining or self._tiers.slots.least_used()
            return _Wait.SLOT
        row = Row(request, slot=-1, generator=_generator(request))
        return self._seat(step, row, waiter, needs_place=needs_place)

    def _seat(self, step: _Step, row: Row, waiter: Waiter, *, needs_place: bool) -> Row | _Wait:
        """Give a row its place and slot, and what is known of its prompt."""
        if needs_place:
            assert self._cache is not None
            row.place = self._cache.take(row.request.room)
            if row.place is None:
                step.cache_is_full = True
                return _Wait.CACHE
        slot = None
        try:
            slot = self._tiers.acquire(waiter)
            assert slot is not None, "available said there was one"
            row.slot = slot
            if row.request.keeps_cache:
                self._restore(row)
        except BaseException:
            if slot is not None:
                self._tiers.slots.release(slot)
            if row.place is not None and self._cache is not None:
                self._cache.release(row.place)
            raise
        return row

    def _hold_back(self, step: _Step, share: str, lane: Lane, wait: _Wait) -> None:
        """Leave out, for this step, what needs the same as the head of a lane."""
        lanes = step.lanes[share]
        if wait is _Wait.LOAD:
            step.loading.add(share)
        if wait is _Wait.BUDGET:
            lanes.clear()
        elif wait in (_Wait.ROW, _Wait.CACHE):
            lanes[:] = [each for each in lanes if each is not lane and each.kind is not Kind.GENERATE]
        elif wait is _Wait.SLOT and lane.kind is Kind.GENERATE:
            lanes[:] = [each for each in lanes if each.kind is not Kind.GENERATE]
        else:
            lanes.remove(lane)

    def _row_free(self, step: _Step, request: Request) -> bool:
        if step.placed < self.limits.rows:
            return True
        return request.group not in step.placed_for and step.placed < self.limits.rows + self.limits.spare_rows

    def _slot_free(self, step: _Step, digest: str) -> bool:
        return digest != step.draining and self._tiers.slots.available(digest)

    def _plan(self, step: _Step, span: Span) -> None:
        step.spans.append(span)
        step.left -= len(span.tokens)
        self._parts.spend(span.row.request.owner, len(span.tokens))
        advance(span.row, span)
        speaks = span.last and span.row.request.sampling is not None
        self._charge(span.row, INPUT_COST * len(span.tokens) + (OUTPUT_COST if speaks else 0.0))

    def _charge(self, row: Row, cost: float) -> None:
        self.counters.charge(row.request.queue, cost, row.request.weight)

    def _take(self, step: _Step, share: str, lane: Lane) -> None:
        self.waiting.pop(share, lane)
        if not lane.waiters:
            step.lanes[share].remove(lane)

    def _forget(self, waiter: Waiter) -> None:
        self._tiers.let_go(waiter)
        self._leave(waiter.request)

    def _leave(self, request: Request) -> None:
        self.counters.leave(request.queue)
        self._tiers.leave(request)


def _generator(request: Request) -> torch.Generator | None:
    if request.sampling is None or request.sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if request.sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.sampling.seed)
    return generator
