"""A client of one server: HTTP/1.1 over asyncio's sockets, a connection a request, streams read as they come.

Of our own and not a library's, since what it costs is counted as the server's: nothing here buffers, retries or waits
for a place in a pool.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from adapterhub.errors import EndpointError, UsageError

_LINE = 1 << 20  # bytes of the longest line that is read: an event is one
_WITHOUT_TEXT = ("classification", "multilabel", "embedding", "preference")


@dataclass(frozen=True)
class Reply:
    """The beginning of an answer; its body comes as it is read."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; raises EOFError where it ends too early, ValueError where it is no HTTP."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := int((await self.reader.readline()).partition(b";")[0], 16):
                yield await self.reader.readexactly(size)
                await self.reader.readline()
        elif (length := self.headers.get("content-length")) is not None:
            yield await self.reader.readexactly(int(length))
        else:
            while part := await self.reader.read(1 << 16):
                yield part

    async def text(self) -> str:
        """Return the whole body."""
        return b"".join([part async for part in self.parts()]).decode("utf-8", "replace")

    async def events(self) -> AsyncIterator[str]:
        """Yield the data of each server-sent event (one line each, as OpenAI's are)."""
        rest = b""
        async for part in self.parts():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line.removeprefix(b"data:").strip().decode("utf-8", "replace")


@dataclass(frozen=True)
class Endpoint:
    """Where an OpenAI-compatible server is, and the key it wants."""

    host: str
    port: int
    tls: bool
    root: str
    key: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, key: str | None = None) -> Endpoint:
        """Read `http://host:port`, with `/v1` or without; raises UsageError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no URL: {error}; write http://HOST:PORT") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"{url!r} is no server's URL; write http://HOST:PORT, or https://…/v1")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError("the key holds what no HTTP header can; copy it again")
        path = parts.path.rstrip("/")
        tls = parts.scheme == "https"
        root = path if path.endswith("/v1") else f"{path}/v1"
        return cls(parts.hostname, port or (443 if tls else 80), tls, root, key)

    @property
    def url(self) -> str:
        """The URL that paths are below, such as http://127.0.0.1:8000/v1."""
        return f"{'https' if self.tls else 'http'}://{self._authority}{self.root}"

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @asynccontextmanager
    async def open(self, method: str, path: str, body: Any = None) -> AsyncIterator[Reply]:
        """Send a request; its connection closes with the block.

        Raises OSError where the server cannot be reached, EOFError and ValueError where it does not speak HTTP.
        """
        data = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{method} {self.root}/{path} HTTP/1.1",
            f"Host: {self._authority}",
            "Connection: close",
            "Accept: text/event-stream, application/json",
            f"Content-Length: {len(data)}",
            *(["Content-Type: application/json"] if data else []),
            *([f"Authorization: Bearer {self.key}"] if self.key else []),
        ]
        secured = ssl.create_default_context() if self.tls else None
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=secured, limit=_LINE)
        try:
            writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + data)
            await writer.drain()
            yield Reply(*await _head(reader), reader)
        finally:
            # Not close(), which under TLS waits for the other side's farewell.
            writer.transport.abort()

    async def models(self, seconds: float = 30.0) -> list[str]:
        """Return the names worth asking: the adapters that write text, or all models where no adapter is listed.

        An adapter is what has a `parent`, as vLLM and adapterhub say it. Versions and aliases (`task@2`) are left out
        beside their task. Raises EndpointError where the server cannot be reached, refuses, or lists nothing.
        """
        listing = f"{self.url}/models"
        try:
            async with asyncio.timeout(seconds), self.open("GET", "models") as reply:
                status, text = reply.status, await reply.text()
            if status != 200:
                told = "; name the variable with its key by --key-variable" if status in (401, 403) else ""
                raise EndpointError(f"{listing} answered {status}: {text.strip()[:200]}{told}")
            listed = [each for each in json.loads(text)["data"] if each.get("kind") not in _WITHOUT_TEXT]
            names = [str(each["id"]) for each in listed if each.get("parent")]
            names = names or [str(each["id"]) for each in listed]
        except TimeoutError as error:
            raise EndpointError(f"{listing} gave no answer in {seconds:g} seconds; is the server well?") from error
        except OSError as error:
            raise EndpointError(f"no server at {self.url} ({error}); start it, or see to the address") from error
        except (EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise EndpointError(f"{listing} is no list of models ({error!r}); name them with --models") from error
        if not names:
            raise EndpointError(f"{listing} lists no model that writes text; name some with --models")
        known = set(names)
        return [name for name in names if "@" not in name or name.partition("@")[0] not in known]

    async def reach(self, seconds: float = 30.0) -> None:
        """Raise EndpointError unless something listens at the address, whatever it answers."""
        try:
            async with asyncio.timeout(seconds):
                secured = ssl.create_default_context() if self.tls else None
                _, writer = await asyncio.open_connection(self.host, self.port, ssl=secured)
        except OSError as error:
            raise EndpointError(f"no server at {self.url} ({error}); start it, or see to the address") from error
        writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first = (await reader.readline()).split()
    if len(first) < 2 or not first[0].startswith(b"HTTP/1."):
        raise EOFError("the connection ended before an answer") if not first else ValueError(f"no HTTP: {first[0]!r}")
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(first[1]), headers
