"""From the engine's thread to the client's socket: one queue a request, and an end when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapterhub.errors import Cancelled, TimedOut
from adapterhub.runtime.stream import Chunk, GenerationStream

from .errors import describe
from .log import LOG
from .record import Record
from .wire import DONE, event

T = TypeVar("T")
LAST_WORD_SECONDS = 1.0


class ClientGone(Cancelled):
    """The client closed its connection before the answer was whole."""


class Feed:
    """The chunks of several generations, merged as they come; `cancel` ends what still runs.

    The queue has no bound of its own: a generation brings at most `max_tokens` chunks, and a slow reader must not hold
    up the engine.
    """

    def __init__(self, streams: Sequence[GenerationStream]) -> None:
        self._streams = streams
        self._open = set(range(len(streams)))
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue()
        for index, stream in enumerate(streams):
            stream.subscribe(partial(self._put, index))

    def _put(self, index: int, item: Chunk | Exception) -> None:
        """Take an item in the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, item))
        except RuntimeError:  # the loop is closed: nobody is left to read
            self._streams[index].cancel()

    def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Return the feed itself; it can be left and taken up again."""
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        """Return the next chunk until every generation has finished."""
        if not self._open:
            raise StopAsyncIteration
        return await self.take()

    async def take(self) -> tuple[int, Chunk]:
        """Return the next chunk of any generation with its index; raises what the engine raised."""
        index, item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        if item.finish_reason is not None:
            self._open.discard(index)
        return index, item

    def cancel(self) -> None:
        """End the generations that still run; safe to repeat."""
        for index in self._open:
            self._streams[index].cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T], record: Record) -> T:
    """Return what `work` returns; stop it when the client disconnects first, or its time is up.

    Raises ClientGone and TimedOut then.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        left = record.seconds_left
        await asyncio.wait({working, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if gone.done():
            raise ClientGone("the client went away")
        raise TimedOut(
            f"the answer was not whole after {record.seconds:g} s, the most a request may take; ask for less"
        )
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events; an error on the way becomes a last event, since the status is long sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], feed: Feed, record: Record) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._feed = feed
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events for as long as the client is there."""
        try:
            await while_connected(receive, self._send_all(send), self._record)
        except ClientGone:
            self._record.gone = True
        except TimedOut as error:
            # Who reads too slowly may not read this either; the connection is closed all the same.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._send_end(send, event(self._failure(error))), LAST_WORD_SECONDS)
        finally:
            self._feed.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await _send(send, data)
            await _send(send, DONE)
        except Exception as error:
            await _send(send, event(self._failure(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_end(self, send: Send, data: bytes) -> None:
        await _send(send, data)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _failure(self, error: Exception) -> dict[str, Any]:
        status, body = describe(error)
        if status == 500:
            LOG.error("request %s failed while streaming", self._record.id, exc_info=error)
        self._record.failed = status
        return body


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
