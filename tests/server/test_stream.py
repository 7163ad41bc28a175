"""Clients that leave, read slowly, or meet an error half-way; and a server that is told to stop."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from adapterhub.errors import CorruptAdapter
from adapterhub.runtime.stream import Chunk
from adapterhub.server import run
from adapterhub.server.stream import Feed

from .fake import FakeHub, FakeStream, eventually
from .running import Running, left, opened


def waiting(prompt: str = "wait", **options: Any) -> dict[str, Any]:
    return {"model": "orders", "prompt": prompt, "max_tokens": 50, **options}


def test_leaving_a_stream_cancels_it(server: Running) -> None:
    before, gone = len(server.hub.streams), left(server)
    with opened(server, waiting(stream=True)) as raw:
        server.hub.allow(2)
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
    stream = server.hub.streams[before]
    assert stream.cancelled.wait(10)
    assert eventually(lambda: left(server) == gone + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token_cancels(server: Running, stream: bool) -> None:
    before, gone = len(server.hub.streams), left(server)
    with opened(server, waiting(["wait a", "wait b"], stream=stream)):  # type: ignore[arg-type]
        assert eventually(lambda: len(server.hub.streams) == before + 2)
    assert all(each.cancelled.wait(10) for each in server.hub.streams[before:])
    assert eventually(lambda: left(server) == gone + 1)


def test_leaving_a_classification_is_seen(server: Running) -> None:
    asked, gone = len(server.hub.inputs), left(server)
    with opened(server, {"model": "tone", "input": ["wait"]}, "/v1/classify"):
        assert eventually(lambda: len(server.hub.inputs) == asked + 1)
    assert eventually(lambda: left(server) == gone + 1)
    assert server.hub.freed.wait(10)


def test_a_client_that_does_not_read_holds_nobody_up(server: Running) -> None:
    """The engine's side ends although nobody reads, and others are answered meanwhile."""
    before = len(server.hub.streams)
    with opened(server, {"model": "orders", "prompt": "Hi", "max_tokens": 20_000, "stream": True}) as raw:
        assert eventually(lambda: len(server.hub.streams) == before + 1)
        assert server.hub.streams[before].ended.wait(60)
        assert server.post("/v1/completions", {"model": "orders", "prompt": "Hi"}).status == 200
        seen = b""
        while not seen.endswith(b"0\r\n\r\n"):
            seen += raw.recv(1 << 20)
    assert seen.count(b'"text":') == 20_000
    assert b"data: [DONE]" in seen


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_error_half_way_is_the_last_event(server: Running, path: str) -> None:
    turns = {"messages": [{"role": "user", "content": "late"}]}
    prompt = {"prompt": "late"} if path == "/v1/completions" else turns
    answer = server.post(path, {"model": "orders", "max_tokens": 9, "stream": True, **prompt})
    assert answer.status == 200
    assert "secret" not in answer.body.decode()
    assert answer.events[-1]["error"]["code"] == "internal_error"
    assert "[DONE]" not in answer.events
    assert len(answer.events) >= 4
    text = server.ask("GET", "/metrics").body.decode()
    assert f'route="{path}",status="500"' in text


def test_a_feed_whose_loop_is_closed_cancels() -> None:
    def run(_: FakeStream) -> Iterator[Chunk]:
        released.wait(10)
        yield Chunk("a", (1,), None, None, 1, 1)

    released = threading.Event()
    stream = FakeStream(run)

    async def make() -> Feed:
        return Feed([stream])  # type: ignore[list-item]

    asyncio.run(make())
    released.set()
    assert stream.cancelled.wait(10)


@contextmanager
def process(drain: str, load: str = "0", until: str = "ready: ") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the slow server as a process of its own; yields it with its port once it says `until`."""
    command = [sys.executable, "-m", "tests.server.slow_server", drain, load]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                if line.startswith(until):
                    yield child, int(line.rsplit(":", 1)[1].partition(",")[0])
                    return
            raise AssertionError(f"the server ended before it said {until!r}")
        finally:
            child.kill()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_sigterm_drains() -> None:
    """What runs is answered whole; what is new is refused, in words, until the process ends with 0."""
    with process("30") as (child, port):
        running = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps(waiting(stream=True))
        running.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        assert ask(port, "POST", "/allow/1")[0] == 200
        response = running.getresponse()
        child.terminate()
        assert eventually(lambda: ask(port, "GET", "/ready")[0] == 503)
        status, refusal = ask(port, "POST", "/v1/completions", waiting("Hi"))
        assert status == 503
        assert "stopping" in json.loads(refusal)["error"]["message"]
        assert ask(port, "GET", "/health")[0] == 200
        assert ask(port, "POST", "/allow/100")[0] == 200
        answer = response.read().decode()
        running.close()
        assert answer.count('"text":') == 50
        assert answer.endswith("data: [DONE]\n\n")
        assert child.wait(30) == 0


def test_what_outlasts_the_drain_is_told_so() -> None:
    with process("0.1") as (child, port):
        running = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps(waiting(stream=True))
        running.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        assert ask(port, "POST", "/allow/1")[0] == 200
        response = running.getresponse()
        child.terminate()
        answer = response.read().decode()
        running.close()
        assert '"code":"cancelled"' in answer
        assert "[DONE]" not in answer
        assert child.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_base_loads_ends_it_at_once(number: signal.Signals) -> None:
    with process("1000", "1000", "listening") as (child, port):
        assert ask(port, "GET", "/ready")[0] == 503
        child.send_signal(number)
        assert child.wait(30) == 0
        assert child.stderr is not None
        said = child.stderr.read()
        assert "still loading" in said
        assert "ready" not in said


def test_a_server_that_dies_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def die(*_: Any, **__: Any) -> None:
        raise OSError("the socket is gone")

    monkeypatch.setattr(run._Server, "serve", die)
    opened: Any = FakeHub()
    with pytest.raises(OSError, match="the socket is gone"):
        run.serve(lambda: opened, run.ServerOptions(port=0), lambda _: None)


def test_a_load_that_fails_ends_the_server() -> None:
    def fail() -> Any:
        raise CorruptAdapter("damaged")

    with pytest.raises(CorruptAdapter, match="damaged"):
        run.serve(fail, run.ServerOptions(port=0), lambda _: None)


def test_a_second_signal_does_not_wait() -> None:
    with process("1000") as (child, port):
        running = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        running.request("POST", "/v1/completions", json.dumps(waiting()), {"content-type": "application/json"})
        assert eventually(lambda: b"adapterhub_running_rows 1.0" in ask(port, "GET", "/metrics")[1])
        child.send_signal(signal.SIGINT)
        assert eventually(lambda: ask(port, "GET", "/ready")[0] == 503)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == -signal.SIGINT
        running.close()
