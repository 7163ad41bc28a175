"""What all requests of one server share: the hub, its thread pools, counters, and whether it still takes work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from adapterhub.errors import Overloaded
from adapterhub.runtime.hub import AdapterHub
from adapterhub.runtime.target import AdapterNumbers

from .access import Access
from .feedback_store import FeedbackStore
from .limits import Places, ServerLimits
from .metrics import Metrics

T = TypeVar("T")
# Threads that wait for the engine's answers, and how many of them one key may hold.
COMPUTING, OF_ONE_KEY = 32, 16
# Threads that read rules for answers, and how many of them one key may hold: a bad rule takes seconds.
PREPARING, PREPARED_FOR_ONE_KEY = 4, 2


class Service:
    """The state of one server. `hub` is None until the base is loaded; the event loop's thread alone changes it.

    Without `access` everybody may do everything; without `feedback` none is kept, nor what it may be about.
    """

    def __init__(
        self,
        hub: AdapterHub | None = None,
        *,
        access: Access | None = None,
        limits: ServerLimits | None = None,
        feedback: FeedbackStore | None = None,
    ) -> None:
        self.hub = hub
        self.feedback = feedback
        self.access = access
        self.limits = limits or ServerLimits()
        self.places = Places(self.limits.requests)
        self.draining = False
        self.metrics = Metrics(self._stats, self._adapters)
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        # Apart, so that long computations never keep short look-ups waiting.
        self._lookups = ThreadPoolExecutor(16, thread_name_prefix="lookup")
        self._computing = ThreadPoolExecutor(COMPUTING, thread_name_prefix="compute")
        self._preparing = ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._preparations: dict[str, asyncio.Semaphore] = {}

    def _stats(self) -> Mapping[str, float]:
        return {} if self.hub is None else self.hub.stats()

    def _adapters(self) -> Sequence[AdapterNumbers]:
        return () if self.hub is None else self.hub.adapter_counts()

    def check_ready(self) -> None:
        """Raise Overloaded while the base is loading and while the server stops."""
        if self.draining:
            raise Overloaded("the server is stopping; send the request to another one, or again later")
        if self.hub is None:
            raise Overloaded("the server is still loading its base; ask /ready and try again")

    @property
    def loaded(self) -> AdapterHub:
        """The hub, for requests that were let in."""
        assert self.hub is not None, "the guard lets no request in before the hub is loaded"
        return self.hub

    async def look_up(self, call: Callable[[], T]) -> T:
        """Run a short blocking call (files, tokenising) off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._lookups, call)

    async def compute(self, call: Callable[[], T], key: str | None = None) -> T:
        """Wait for the engine's answers (labels, vectors) off the event loop; one key never holds all threads."""
        turns = None if key is None else self._turns.setdefault(key, asyncio.Semaphore(OF_ONE_KEY))
        return await _run(self._computing, turns, call)

    async def prepare(self, call: Callable[[], T], key: str | None = None) -> T:
        """Run what may first have to read a rule for its answer off the event loop; as `compute`, on threads apart."""
        turns = None
        if key is not None:
            turns = self._preparations.setdefault(key, asyncio.Semaphore(PREPARED_FOR_ONE_KEY))
        return await _run(self._preparing, turns, call)

    def enter(self) -> None:
        """Note that a request runs."""
        self.running += 1
        self._idle.clear()

    def leave(self) -> None:
        """Note that a request has ended."""
        self.running -= 1
        if self.running == 0:
            self._idle.set()

    async def drained(self, seconds: float) -> bool:
        """Wait until no request runs, at most `seconds`; return whether that came about."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Let the thread pools end, and close the files."""
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._computing.shutdown(wait=False, cancel_futures=True)
        self._preparing.shutdown(wait=False, cancel_futures=True)
        if self.access is not None:
            self.access.close()
        if self.feedback is not None:
            self.feedback.close()


async def _run(pool: ThreadPoolExecutor, turns: asyncio.Semaphore | None, call: Callable[[], T]) -> T:
    """Run a call in a thread of `pool`, once its key has a turn."""
    loop = asyncio.get_running_loop()
    if turns is None:
        return await loop.run_in_executor(pool, call)
    async with turns:
        return await loop.run_in_executor(pool, call)
