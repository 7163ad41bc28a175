"""The engine's own thread: others leave requests in a queue and are called back."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch

from adapterhub.errors import Cancelled

from .engine import Engine
from .request import FailedEvent, Request

T = TypeVar("T")
log = logging.getLogger(__name__)


class EngineLoop:
    """Runs an engine in one daemon thread. Its methods may be called from any thread.

    `make` loads the base and builds the engine, in that thread too: a second thread that computes, be it only to load,
    leaves workers of its own behind, and where those outnumber the cores GNU OpenMP puts all of them to sleep after
    every operation, which costs a third of the speed. Sinks are called from the engine's thread and must be quick.
    """

    engine: Engine

    def __init__(self, make: Callable[[], Engine], *, threads: int | None = None) -> None:
        """Block until the engine is built; raises what `make` raises."""
        self._make, self._threads = make, threads
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._deadline = 0.0
        built: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._run, args=(built,), name="adapterhub-engine", daemon=True)
        self._thread.start()
        self.engine = built.result()

    def submit(self, request: Request) -> None:
        """Check a request here (its errors rise in the caller) and hand it over; raises Cancelled once closed."""
        self.engine.check(request)
        self._put(partial(self._admit, request))

    def cancel(self, request: Request) -> None:
        """Free the row at the next step, also while its adapter loads; its sink gets nothing more of use."""
        request.cancelled = True
        self._inbox.put(None)

    def forget(self, digest: str) -> None:
        """Free what is kept of an adapter, once the last request that came before is done; see Engine.forget."""
        self._put(partial(self.engine.forget, digest))

    def pin(self, digest: str) -> None:
        """Keep an adapter resident once it is loaded. Blocks, so not for sinks; raises as Engine.pin does."""
        done: Future[None] = Future()
        self._put(partial(_settle, done, partial(self.engine.pin, digest)))
        done.result()

    def unpin(self, digest: str) -> None:
        """Let an adapter leave by the usual rules again."""
        self._put(partial(self.engine.unpin, digest))

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests; give the running ones `drain_seconds` to finish, then end the rest with Cancelled."""
        with self._lock:
            if not self._closing.is_set():
                self._deadline = time.monotonic() + drain_seconds
                self._closing.set()
                self._inbox.put(None)
        self._thread.join()

    def _put(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._closing.is_set():
                raise Cancelled("the engine is stopping")
            self._inbox.put(job)

    def _run(self, built: Future[Engine]) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            torch.get_num_threads()  # makes it this thread's own; the number is the process's until a thread takes it
        _settle(built, self._make)
        if built.exception() is None:
            self._serve(built.result())

    def _serve(self, engine: Engine) -> None:
        engine.listen(partial(self._inbox.put, None))
        ran = False
        try:
            while not self._closing.is_set() or (self._pending(engine) and time.monotonic() < self._deadline):
                # A step that ran nothing is waiting for what comes through the inbox: requests, or the loader's news.
                self._take(block=not ran)
                try:
                    ran = engine.step()
                except Exception as error:  # a fault of ours must not leave askers waiting for ever
                    log.exception("the engine's step failed")
                    engine.fail_all(error)
        finally:
            # However the thread ends, nobody may submit to it any more or go on waiting for it.
            with self._lock:
                self._closing.set()
            self._take(block=False)
            engine.fail_all(Cancelled("the engine stopped before the answer was complete"))
            engine.close()

    def _pending(self, engine: Engine) -> bool:
        return engine.busy or not self._inbox.empty()

    def _take(self, *, block: bool) -> None:
        """Do what lies in the inbox; with `block`, wait for something to do, at most to the deadline once closing."""
        try:
            while True:
                remaining = max(0.0, self._deadline - time.monotonic()) if self._closing.is_set() else None
                job = self._inbox.get(block=block, timeout=remaining)
                block = False
                if job is not None:
                    self._do(job)
        except queue.Empty:
            return

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:  # one job's fault must not end the thread that everybody waits for
            log.exception("a job of the engine failed")

    def _admit(self, request: Request) -> None:
        try:
            self.engine.add(request)
        except Exception as error:
            request.tell(FailedEvent(error))


def _settle(done: Future[T], job: Callable[[], T]) -> None:
    try:
        done.set_result(job())
    except BaseException as error:  # somebody waits for it, whatever it is
        done.set_exception(error)
