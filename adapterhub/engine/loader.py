"""Adapters in host memory, and the thread that reads them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from adapterhub.errors import AdapterError, Cancelled
from adapterhub.lora.weights import LoraWeights

from .request import Adapter
from .runner import HostAdapter


@dataclass(eq=False)
class Load:
    """One adapter on its way into host memory, there, or failed; everyone who waits for one read shares one of these.

    One of `host` and `error` is written once, and `host` never changes after.
    """

    adapter: Adapter
    host: HostAdapter | None = None
    error: Exception | None = None
    bytes: int = 0
    holds: int = 0

    @property
    def over(self) -> bool:
        """True once there is nothing more to wait for."""
        return self.host is not None or self.error is not None


class Loader:
    """Adapters by digest: read in one daemon thread, kept while the byte budget lasts, the least recently used leaving.

    `prepare` checks weights that were read and brings them into the form slots copy from; it runs in the same thread.

    What is held is never dropped, so that a queued request finds what it waited for; reading ahead stops while held
    adapters alone fill the budget, so the budget is exceeded by one adapter at most (and by pinned ones). Shares take
    turns: one that asks for a thousand cold adapters keeps no other waiting for more than a read. An error belongs to
    those who waited for that read; the next request reads again. The thread ends when there is nothing to read.

    All methods may be called from any thread.
    """

    def __init__(self, budget: int, prepare: Callable[[Adapter, LoraWeights], HostAdapter]) -> None:
        self.budget = budget
        self.on_news: Callable[[], None] = lambda: None
        self._prepare = prepare
        self.reads = 0
        self._lock = threading.Lock()
        self._news = threading.Event()
        # What is wanted, being read or in memory; least recently used first. Failed reads are not in it.
        self._loads: OrderedDict[str, Load] = OrderedDict()
        self._wanted: OrderedDict[str, OrderedDict[str, Load]] = OrderedDict()
        self._reading: Load | None = None
        self._pinned: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def hold(self, adapter: Adapter, share: str) -> Load:
        """Return the load of an adapter, which is now read if it must be and stays until `release`."""
        with self._lock:
            if self._closed:
                return Load(adapter, error=Cancelled("the engine is stopping"), holds=1)
            load = self._loads.setdefault(adapter.digest, Load(adapter))
            self._loads.move_to_end(adapter.digest)
            load.holds += 1
            if not load.over and load is not self._reading:
                self._wanted.setdefault(share, OrderedDict())[adapter.digest] = load
                self._start()
            return load

    def release(self, load: Load) -> None:
        """Say that one holder needs it no more: it may be dropped, and is not read at all if it was not yet begun."""
        with self._lock:
            load.holds -= 1
            if not load.holds and not load.over and load is not self._reading:
                self._unwant(load)
                if self._loads.get(load.adapter.digest) is load:
                    del self._loads[load.adapter.digest]
            self._trim()
            self._start()

    def touch(self, digest: str) -> None:
        """Count an adapter as used now, where it is in memory."""
        with self._lock:
            if digest in self._loads:
                self._loads.move_to_end(digest)

    def pin(self, digest: str) -> None:
        """Keep an adapter, now or once it is read, until `unpin`."""
        with self._lock:
            self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        """Let an adapter go by the usual rule."""
        with self._lock:
            self._pinned.discard(digest)
            self._trim()

    def drop(self, digest: str) -> None:
        """Free an adapter that nobody holds; what is being read of it is thrown away."""
        with self._lock:
            self._pinned.discard(digest)
            load = self._loads.get(digest)
            if load is not None and not load.holds:
                del self._loads[digest]

    def close(self) -> None:
        """Begin no more reads; one under way ends by itself and is thrown away. Who waits gets Cancelled."""
        with self._lock:
            self._closed = True
            for load in self._loads.values():
                if not load.over:
                    load.error = Cancelled("the engine stopped before the adapter was read")
            self._loads.clear()
            self._wanted.clear()
        self._tell()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a read has ended since the last `clear`; return whether one has."""
        return self._news.wait(timeout)

    def clear(self) -> None:
        """Forget past news; call it before looking at loads."""
        self._news.clear()

    @property
    def loading(self) -> int:
        """Adapters that are wanted or being read."""
        with self._lock:
            return sum(not load.over for load in self._loads.values())

    @property
    def adapters(self) -> tuple[str, ...]:
        """Digests in memory, least recently used first."""
        with self._lock:
            return tuple(digest for digest, load in self._loads.items() if load.over)

    @property
    def bytes(self) -> int:
        """Bytes of the adapters in memory."""
        with self._lock:
            return self._bytes()

    def _bytes(self, *, held: bool = False) -> int:
        return sum(load.bytes for load in self._loads.values() if load.holds or not held)

    def _start(self) -> None:
        if self._thread is None and self._wanted and self._may_read():
            thread = threading.Thread(target=self._run, name="adapterhub-loader", daemon=True)
            thread.start()
            self._thread = thread

    def _may_read(self) -> bool:
        held = self._bytes(held=True)
        return not held or held < self.budget

    def _run(self) -> None:
        # One thread for tensors: more would take cores from the engine's, and beside a busy core they collapse. The
        # number is the process's, for threads that have not computed yet, so it is put back.
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._read_all()
        finally:
            torch.set_num_threads(before)

    def _read_all(self) -> None:
        while (load := self._next()) is not None:
            host, error = None, None
            try:
                host = self._prepare(load.adapter, load.adapter.read())
            except BaseException as raised:  # whatever it is, somebody waits for it
                error = raised if isinstance(raised, Exception) else AdapterError(f"reading stopped: {raised!r}")
            self._end(load, host, error)
            self._tell()

    def _next(self) -> Load | None:
        """Take the first adapter of the share whose turn it is; None, and no thread, where nothing may be read."""
        with self._lock:
            self._reading = None
            if not self._wanted or not self._may_read():
                self._thread = None
                return None
            share, line = next(iter(self._wanted.items()))
            self._wanted.move_to_end(share)
            load = next(iter(line.values()))
            self._unwant(load)
            self._reading = load
            self.reads += 1
            return load

    def _end(self, load: Load, host: HostAdapter | None, error: Exception | None) -> None:
        with self._lock:
            if self._loads.get(load.adapter.digest) is not load:  # dropped or closed meanwhile; nobody looks at it
                return
            if host is None:
                del self._loads[load.adapter.digest]
                load.error = error
                return
            load.bytes = host.bytes
            load.host = host
            self._trim()

    def _unwant(self, load: Load) -> None:
        for share in [share for share, line in self._wanted.items() if line.get(load.adapter.digest) is load]:
            del self._wanted[share][load.adapter.digest]
            if not self._wanted[share]:
                del self._wanted[share]

    def _trim(self) -> None:
        """Drop what nobody holds, the least recently used first, until the rest fits the budget."""
        excess = self._bytes() - self.budget
        if excess <= 0:
            return
        for digest, load in list(self._loads.items()):
            if load.host is not None and not load.holds and digest not in self._pinned:
                del self._loads[digest]
                excess -= load.bytes
                if excess <= 0:
                    return

    def _tell(self) -> None:
        self._news.set()
        self.on_news()
