"""A server on a real socket, in a thread of the test."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import uvicorn

from adapterhub.server.app import create_app
from adapterhub.server.run import bind, url_of
from adapterhub.server.service import Service


@dataclass(frozen=True)
class Answer:
    """A whole answer as it came over the socket."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after a check that its shape is OpenAI's."""
        assert set(self.json) == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert self.headers["content-type"] == "application/json"
        return error

    @property
    def events(self) -> list[Any]:
        """The events of a stream, parsed; the last is the text `[DONE]` where it was sent."""
        parts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    port: int
    service: Service
    hub: Any

    def connect(self) -> closing[http.client.HTTPConnection]:
        return closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30))

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request; `body` is JSON unless it is bytes."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        with self.connect() as connection:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def openai(self, key: str = "none") -> openai.OpenAI:
        """A client that does not try twice, so that every refusal is seen."""
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=30)


@contextmanager
def running(hub: Any, **options: Any) -> Iterator[Running]:
    """Serve `hub` (None: still loading) until the block ends; `options` are those of Service."""
    service = Service(hub, **options)
    bound = bind("127.0.0.1", 0)
    port = int(url_of(bound).rpartition(":")[2])
    config = uvicorn.Config(create_app(service), log_config=None, lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        yield Running(port, service, hub)
    finally:
        server.should_exit = True
        thread.join()
        service.close()


@contextmanager
def opened(server: Running, body: dict[str, Any], path: str = "/v1/completions") -> Iterator[socket.socket]:
    """Send a request and leave the answer to the caller."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(head.encode() + data)
        yield raw


def left(server: Running) -> float:
    """How many requests ended because their client left."""
    text = server.ask("GET", "/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if "requests_total" in line and '"499"' in line)
