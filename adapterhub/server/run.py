"""A server's life: bind, load, answer, and on SIGTERM finish what runs before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import uvicorn

from adapterhub.errors import UsageError
from adapterhub.runtime.hub import AdapterHub

from .access import Access
from .app import create_app
from .feedback_store import FeedbackStore
from .heaps import give_back, share_heaps
from .limits import ServerLimits
from .log import LOG
from .service import Service

T = TypeVar("T")
_TIDY_SECONDS = 30.0


@dataclass(frozen=True)
class ServerOptions:
    """Where, how and for whom to serve.

    `port` 0 takes a free one; `drain_seconds` is how long running requests may go on. `keys` is a file of keys,
    `api_key` one that may do everything; without both nobody is asked for one. `feedback` is the folder that keeps it.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    keys: Path | None = None
    insecure: bool = False
    drain_seconds: float = 30.0
    limits: ServerLimits = field(default_factory=ServerLimits)
    feedback: Path | None = None


def check_exposure(options: ServerOptions) -> None:
    """Raise UsageError where anyone on the network could use the server without a key."""
    if is_loopback(options.host) or options.api_key or options.keys or options.insecure:
        return
    raise UsageError(
        f"the host {options.host!r} can be reached from outside this machine; give a file of keys with --keys (or "
        "ADAPTERHUB_KEYS), or one key with --api-key (or ADAPTERHUB_API_KEY), or allow everyone with --insecure"
    )


def make_access(options: ServerOptions) -> Access | None:
    """Return who may come in, None where everybody may; raises FileMissing and ConfigError for the file of keys."""
    if not options.keys and not options.api_key:
        return None
    return Access(options.keys, options.api_key or None)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises UsageError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(2048)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(open_hub: Callable[[], AdapterHub], options: ServerOptions, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; must run in the main thread.

    `open_hub` loads the base while /ready already says 503; what it raises ends the server and is raised here. `say`
    takes lines for people. Told to stop while the base loads, it ends the process with 0: a thread in the middle of
    native code can be neither stopped nor safely outlived.
    """
    check_exposure(options)
    share_heaps()
    access = make_access(options)
    with bind(options.host, options.port) as bound:
        loaded = asyncio.run(_serve(open_hub, options, access, bound, say))
    if not loaded:
        _leave()


def _leave() -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: they would close the door before /ready could say 503."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    open_hub: Callable[[], AdapterHub],
    options: ServerOptions,
    access: Access | None,
    bound: socket.socket,
    say: Callable[[str], None],
) -> bool:
    """Serve to the end; False says that the base is still loading."""
    kept = None if options.feedback is None else FeedbackStore(options.feedback)
    service = Service(access=access, limits=options.limits, feedback=kept)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = _Server(config)
    stop = asyncio.Event()
    with _signals(stop, asyncio.get_running_loop()):
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            say(f"listening on {url_of(bound)}, loading")
            service.hub = await _unless(stop, serving, _in_thread(open_hub))
            if service.hub is None:
                service.draining = True
                say("stopping: the base was still loading")
                return False
            say(f"ready: {url_of(bound)}")
            await _unless(stop, serving, _tidied())
            await _drain(service, options.drain_seconds, say)
            return True
        finally:
            server.should_exit = True
            await asyncio.wait({serving})
            service.close()


async def _tidied() -> None:
    """Give back what loading took and what requests leave behind, now and again, until this is cancelled."""
    while True:
        await asyncio.to_thread(give_back)
        await asyncio.sleep(_TIDY_SECONDS)


async def _in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a thread that, unlike a pool's, nobody waits for at the end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not done.cancelled():
            set_it()

    def work() -> None:
        try:
            result = call()
        except Exception as error:
            outcome = partial(done.set_exception, error)
        else:
            outcome = partial(done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=work, name="load", daemon=True).start()
    return await done


async def _unless(stop: asyncio.Event, serving: asyncio.Task[None], work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns, or None once `stop` is set; raises what ended `serving`, if that ends first."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            raise RuntimeError("the HTTP server ended although nobody stopped it")
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()


async def _drain(service: Service, seconds: float, say: Callable[[str], None]) -> None:
    """Take nothing new, wait for what runs, and cancel what is left; open streams then get an error event."""
    service.draining = True
    say(f"stopping: {service.running} requests are running, at most {seconds:g} s more")
    if not await service.drained(seconds):
        LOG.warning("%d requests did not finish within %g s and are cancelled", service.running, seconds)
    assert service.hub is not None
    await asyncio.to_thread(service.hub.close)


@contextlib.contextmanager
def _signals(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM set `stop`, and the second one end the process as usual."""

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
