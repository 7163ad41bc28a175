"""What a server takes on: so many bytes, so many requests, so long."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapterhub.errors import LimitReached, Overloaded, UsageError
from adapterhub.server.access import Access
from adapterhub.server.keys import KeyFile
from adapterhub.server.limits import Places, ServerLimits

from .fake import FakeHub, eventually
from .running import opened, running

ASKED = {"model": "orders", "prompt": "Hi", "max_tokens": 3}
WAITING = {"model": "orders", "prompt": "wait", "max_tokens": 50}


def test_limits_that_make_no_sense() -> None:
    for wrong in ({"body_bytes": 0}, {"requests": 0}, {"seconds": 0.0}, {"seconds": float("inf")}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ServerLimits(**wrong)  # type: ignore[arg-type]


def test_one_key_takes_half_of_the_places() -> None:
    places = Places(4)
    for _ in range(2):
        places.take("a")
    with pytest.raises(LimitReached, match="2 requests"):
        places.take("a")
    places.take("b")
    places.take("c")
    with pytest.raises(Overloaded, match="4 requests"):
        places.take("d")
    places.free("a")
    places.take("a")
    for key in "aabc":
        places.free(key)
    for key in (None, None, None, None):  # without keys there is nobody to be fair to
        places.take(key)


def test_bodies() -> None:
    with running(FakeHub(), limits=ServerLimits(body_bytes=200)) as server:
        assert server.post("/v1/completions", ASKED).status == 200
        answer = server.post("/v1/completions", {**ASKED, "prompt": "x" * 200})
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert "200" in answer.error["message"]


def test_requests_at_once() -> None:
    with running(FakeHub(), limits=ServerLimits(requests=2)) as server, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(server.post, "/v1/completions", WAITING) for _ in range(2)]
        assert eventually(lambda: len(server.hub.streams) == 2)
        for path, body in (("/v1/completions", ASKED), ("/v1/classify", {"model": "tone", "input": "Hi"})):
            answer = server.post(path, body)
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert answer.headers["retry-after"] == "1"
        assert server.ask("GET", "/v1/models").status == 200
        server.hub.allow(100)
        assert [each.result().status for each in waiting] == [200, 200]
        assert eventually(lambda: server.post("/v1/completions", ASKED).status == 200)


def test_the_flood_of_one_key_leaves_room_for_another(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    keys = {name: {"authorization": f"Bearer {file.create(name)[1]}"} for name in ("flood", "other")}
    limits = ServerLimits(requests=80)
    with running(FakeHub(), access=Access(file.path), limits=limits) as server, ThreadPoolExecutor(60) as pool:
        body = {"model": "tone", "input": ["wait"]}
        waiting = [pool.submit(server.post, "/v1/classify", body, keys["flood"]) for _ in range(40)]
        assert eventually(lambda: server.service.running == 40)
        refused = server.post("/v1/classify", body, keys["flood"])
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        # Neither a place nor a thread is missing for whoever asks besides.
        assert server.post("/v1/classify", {"model": "tone", "input": "Hi"}, keys["other"]).status == 200
        server.hub.allow(1000)
        assert {each.result().status for each in waiting} == {200}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/classify"])
def test_time_is_up_before_the_answer(path: str) -> None:
    with running(FakeHub(), limits=ServerLimits(seconds=0.2)) as server:
        body = WAITING if path == "/v1/completions" else {"model": "tone", "input": ["wait"]}
        answer = server.post(path, body)
        assert (answer.status, answer.error["code"]) == (503, "timed_out")
        assert "0.2 s" in answer.error["message"]
        assert answer.headers["retry-after"] == "1"
        if path == "/v1/completions":
            assert server.hub.streams[0].cancelled.wait(10)
        else:
            assert server.hub.freed.wait(10)
        assert server.post("/v1/completions", ASKED).status == 200


def test_time_is_up_in_the_middle_of_a_stream() -> None:
    with running(FakeHub(), limits=ServerLimits(seconds=0.5)) as server:
        server.hub.allow(3)
        events = server.post("/v1/completions", {**WAITING, "stream": True}).events
        assert "[DONE]" not in events
        assert events[-1]["error"]["code"] == "timed_out"
        assert len(events) == 4
        assert server.hub.streams[0].cancelled.wait(10)


def test_a_reader_who_does_not_read_is_let_go() -> None:
    with running(FakeHub(), limits=ServerLimits(seconds=0.5)) as server:
        body = {"model": "orders", "prompt": "x", "max_tokens": 2**31 - 1, "stream": True}
        with opened(server, body) as raw:
            raw.recv(10)
            assert eventually(lambda: bool(server.hub.streams) and server.hub.streams[0].cancelled.is_set())
            assert eventually(lambda: server.service.running == 0)


def test_a_body_that_does_not_come() -> None:
    with running(FakeHub(), limits=ServerLimits(seconds=0.2)) as server:
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(head)
            answer = b""
            while data := raw.recv(65536):
                answer += data
            assert b" 408 " in answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timed_out"
