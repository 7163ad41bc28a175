"""Around every request: an id, a count, a log line, and the doors (key, draining, size) it must pass."""

from __future__ import annotations

import asyncio
import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.errors import AdapterHubError

from .errors import error_response, respond
from .fields import shorten
from .limits import ServerLimits
from .log import LOG
from .record import Record, request_id
from .service import Service
from .wire import Json

OPEN_ROUTES = frozenset({"/health", "/ready"})
ADMIN_ROUTES = frozenset({"/metrics", "/v1/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
QUIET_ROUTES = OPEN_ROUTES | {"/metrics"}
# A client that is still sending would not read its refusal, so this much of a refused body is read and dropped.
MAX_DROPPED_BYTES = 64 * 1024 * 1024


class Observe:
    """Give every request an id, count it, log it, and turn what nobody foresaw into a 500 that tells nothing."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(request_id(Headers(scope=scope).get("x-request-id")), scope["method"], scope["path"])
        scope.setdefault("state", {})["record"] = record

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.id
                if record.digest is not None:
                    headers["x-adapterhub-digest"] = record.digest
            await send(message)

        self.service.enter()
        try:
            await self.app(scope, receive, tell)
        except Exception as error:
            LOG.exception("request %s failed", record.id)
            if record.status:
                raise
            await respond(error)(scope, receive, tell)
        finally:
            self.service.leave()
            record.settle()
            record.count(self.service.metrics)
            if record.path not in QUIET_ROUTES:
                line = record.line()
                LOG.info("%s", json.dumps(line), extra={"request": line})


class Guard:
    """Refuse, before a body is read, what may not pass."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record: Record = scope["state"]["record"]
        refusal = self._refusal(scope, Headers(scope=scope), record)
        if refusal is not None:
            await _drop_body(receive)
            await refusal(scope, receive, send)
            return
        try:
            await self.app(scope, _limited(receive, self.service.limits, record), send)
        finally:
            if record.placed:
                self.service.places.free(record.key)

    def _refusal(self, scope: Scope, headers: Headers, record: Record) -> Json | None:
        path = scope["path"]
        if path in OPEN_ROUTES:
            return None
        try:
            if self.service.access is not None and not self._identify(path, headers, record):
                message = "a valid API key is needed: send the header 'Authorization: Bearer KEY'"
                return error_response(401, message, headers={"www-authenticate": "Bearer"})
            if path.endswith("\n"):
                # A route's pattern overlooks a last line break; the names that the doors compare do not.
                return error_response(404, f"no route {scope['method']} {shorten(path, 100)[1:-1]}")
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > self.service.limits.body_bytes:
                return error_response(413, _too_large(self.service.limits))
            if path.startswith("/v1/"):
                self.service.check_ready()
            if _is_asked(scope):
                self.service.places.take(record.key)
                record.placed, record.seconds = True, self.service.limits.seconds
        except AdapterHubError as error:
            return respond(error)
        return None

    def _identify(self, path: str, headers: Headers, record: Record) -> bool:
        """Note on the record who asks, and return whether anybody known does; raises Forbidden and LimitReached."""
        access = self.service.access
        assert access is not None
        key = access.find(headers.get("authorization", ""))
        if key is None:
            return False
        record.visitor = access.visitor(key)
        if path in ADMIN_ROUTES or path.startswith("/v1/adapters/"):
            record.visitor.check_admin()
        access.count(key)
        return True


def _is_asked(scope: Scope) -> bool:
    """Say whether a request is one that computes, and so is counted and timed."""
    return bool(scope["method"] == "POST" and scope["path"].startswith("/v1/"))


def _too_large(limits: ServerLimits) -> str:
    return f"the body is larger than {limits.body_bytes} bytes"


def _limited(receive: Receive, limits: ServerLimits, record: Record) -> Receive:
    """Count what a body brings, for those that do not say their length, and how long it takes to come."""
    received, whole = 0, False

    async def count() -> Message:
        nonlocal received, whole
        if whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), record.seconds_left)
        except TimeoutError:
            raise HTTPException(408, f"the body was not whole after {record.seconds:g} s") from None
        received += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if received > limits.body_bytes:
            if not whole:
                await _drop_body(receive)
            raise HTTPException(413, _too_large(limits))
        return message

    return count


async def _drop_body(receive: Receive) -> None:
    dropped, more = 0, True
    while more and dropped < MAX_DROPPED_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        more = message.get("more_body", False)
