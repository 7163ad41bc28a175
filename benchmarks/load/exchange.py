"""One HTTP exchange over a real socket, by hand, so that bad, slow and leaving clients can be played as well."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from adapterhub.bench.endpoint import Reply

HOST = "127.0.0.1"


class Lost(Exception):
    """A request that got no whole answer although nobody gave it up."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, parsed; the last one is the text `[DONE]` where it came."""
        parts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]

    @property
    def code(self) -> str | None:
        """The error's code, None where the body is no error of OpenAI's shape."""
        try:
            error = self.json["error"]
        except (ValueError, LookupError, TypeError):
            return None
        shaped = isinstance(error, dict) and set(error) == {"message", "type", "param", "code"} and error["message"]
        return str(error["code"]) if shaped else None


@asynccontextmanager
async def opened(
    port: int, method: str, path: str, body: Any = None, key: str | None = None, *, buffer: int | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request whole and give its connection to the caller; `body` is JSON unless it is bytes.

    `buffer` is how many bytes the system may hold for this reader.
    """
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{port}", "Connection: close", f"Content-Length: {len(data)}"]
    head += ["Content-Type: application/json"] if data else []
    head += [f"Authorization: Bearer {key}"] if key else []
    raw = socket.socket()
    raw.setblocking(False)
    try:
        if buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(raw, (HOST, port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=buffer or 1 << 20)
    except BaseException:
        raw.close()
        raise
    try:
        writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + data)
        await writer.drain()
        yield reader
    finally:
        writer.transport.abort()


async def head_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the status and the headers."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def exchange(
    port: int, method: str, path: str, body: Any = None, key: str | None = None, *, seconds: float = 180.0
) -> Answer:
    """Return the whole answer; raises Lost where none comes."""
    try:
        async with asyncio.timeout(seconds), opened(port, method, path, body, key) as reader:
            status, headers = await head_of(reader)
            whole = [part async for part in Reply(status, headers, reader).parts()]
            return Answer(status, headers, b"".join(whole))
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        raise Lost(f"{method} {path}: {error!r}") from error
