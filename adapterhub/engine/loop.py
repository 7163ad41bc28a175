"""The engine's own thread: others leave requests in a queue and are called back."""

from __future__ import annotations

import logging
import queue
import threading
import time

import torch

from adapterhub.errors import Cancelled

from .engine import Engine
from .request import FailedEvent, Request

log = logging.getLogger(__name__)


class EngineLoop:
    """Runs an engine in one daemon thread. `submit` and `cancel` may be called from any thread.

    Sinks are called from the engine's thread and must be quick.
    """

    def __init__(self, engine: Engine, *, threads: int | None = None) -> None:
        self.engine = engine
        self._threads = threads
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="adapterhub-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Check a request here (its errors rise in the caller) and hand it over; raises Cancelled once closed."""
        self.engine.check(request)
        with self._lock:
            if self._closing.is_set():
                raise Cancelled("the engine is stopping")
            self._inbox.put(request)

    def cancel(self, request: Request) -> None:
        """Free the row at the next step; its sink gets nothing more of use."""
        request.cancelled = True

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests; give the running ones `drain_seconds` to finish, then end the rest with Cancelled."""
        with self._lock:
            if not self._closing.is_set():
                self._deadline = time.monotonic() + drain_seconds
                self._closing.set()
                self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            while not self._closing.is_set() or (self._pending() and time.monotonic() < self._deadline):
                self._take(block=not self._pending())
                try:
                    self.engine.step()
                except Exception as error:  # a fault of ours must not leave askers waiting for ever
                    log.exception("the engine's step failed")
                    self.engine.fail_all(error)
        finally:
            # However the thread ends, nobody may submit to it any more or go on waiting for it.
            with self._lock:
                self._closing.set()
            self._take(block=False)
            self.engine.fail_all(Cancelled("the engine stopped before the answer was complete"))

    def _pending(self) -> bool:
        return self.engine.busy or not self._inbox.empty()

    def _take(self, *, block: bool) -> None:
        try:
            while True:
                request = self._inbox.get(block=block)
                block = False
                if request is not None:
                    self._admit(request)
        except queue.Empty:
            return

    def _admit(self, request: Request) -> None:
        try:
            self.engine.add(request)
        except Exception as error:
            request.tell(FailedEvent(error))
