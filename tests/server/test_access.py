"""What a key may do at a server that runs."""

from __future__ import annotations

import json
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from adapterhub.errors import FileMissing, UsageError
from adapterhub.server.access import Access
from adapterhub.server.keys import KeyFile
from adapterhub.server.ledger import day_of
from adapterhub.server.run import ServerOptions, check_exposure, make_access

from .fake import BASE, FakeHub, eventually
from .running import Answer, Running, running


class Guarded:
    """A server with a file of keys, and who asks it."""

    def __init__(self, server: Running, file: KeyFile, access: Access) -> None:
        self.server, self.file, self.access = server, file, access

    def key(self, name: str, **rights: Any) -> str:
        return self.file.create(name, **rights)[1]

    def ask(self, key: str, method: str, path: str, body: Any = None) -> Answer:
        return self.server.ask(method, path, body, {"authorization": f"Bearer {key}"})

    def complete(self, key: str, **fields: Any) -> Answer:
        return self.ask(key, "POST", "/v1/completions", {"model": "orders", "prompt": "Hi", "max_tokens": 3, **fields})

    def used(self, name: str) -> int:
        ledger = self.access.ledger
        assert ledger is not None
        return ledger.used(self.id(name), day_of(ledger.clock()))

    def id(self, name: str) -> str:
        return next(key.id for key in self.file.read() if key.name == name)


@pytest.fixture
def guarded(tmp_path: Path) -> Any:
    file = KeyFile(tmp_path / "keys.json")
    file.create("first", admin=True)
    access = Access(file.path)
    with running(FakeHub(), access=access) as server:
        yield Guarded(server, file, access)


def test_keys_come_and_go_without_a_restart(guarded: Guarded) -> None:
    assert guarded.complete("ah_nobody").status == 401
    assert guarded.complete("ah_nobody").error["code"] == "invalid_api_key"
    key = guarded.key("shop")
    assert guarded.complete(key).status == 200
    with guarded.server.openai(key) as client:
        assert client.completions.create(model="orders", prompt="Hi").choices
    guarded.file.revoke("shop")
    assert guarded.complete(key).status == 401
    with guarded.server.openai(key) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_key_asks_its_tasks_alone_and_learns_of_no_other(guarded: Guarded) -> None:
    key = guarded.key("shop", tasks=("orders", "org/tiny"))
    assert guarded.complete(key).status == 200
    assert guarded.complete(key, model="orders@1").status == 200
    assert guarded.complete(key, model=BASE).status == 200
    refused = [
        guarded.ask(key, "POST", "/v1/classify", {"model": "tone", "input": "Hi"}),
        guarded.complete(key, model="notes@prod"),
        guarded.complete(key, model="nothing"),
        guarded.complete(key, model="x" * 1000),
        guarded.ask(key, "GET", "/v1/models/tone"),
    ]
    for answer in refused:
        assert answer.status == 403
        assert (answer.error["code"], answer.error["type"]) == ("permission_denied", "permission_error")
        assert len(answer.error["message"]) < 300
    listed = guarded.ask(key, "GET", "/v1/models").json["data"]
    assert [model["id"] for model in listed] == [BASE, "orders"]
    with guarded.server.openai(key) as client, pytest.raises(openai.PermissionDeniedError):
        client.completions.create(model="notes", prompt="Hi")
    assert guarded.complete(guarded.key("all"), model="notes").status == 200


def test_metrics_are_for_admins(guarded: Guarded) -> None:
    plain, admin = guarded.key("plain"), guarded.key("boss", admin=True)
    answer = guarded.ask(plain, "GET", "/metrics")
    assert (answer.status, answer.error["code"]) == (403, "permission_denied")
    assert guarded.ask(admin, "GET", "/metrics").status == 200
    assert guarded.server.ask("GET", "/metrics").status == 401
    for path in ("/health", "/ready"):
        assert guarded.server.ask("GET", path).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1/adapters", "/v1/models"])
def test_a_line_break_after_a_path_opens_no_door(guarded: Guarded, path: str) -> None:
    plain, admin = guarded.key("plain"), guarded.key("boss", admin=True)
    for key in (plain, admin):
        answer = guarded.ask(key, "GET", path + "%0A")
        assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert guarded.server.ask("GET", path + "%0A").status == 401
    assert guarded.ask(plain, "POST", "/v1/load_lora_adapter%0A", {"lora_name": "orders"}).status == 404


def test_requests_a_minute(guarded: Guarded) -> None:
    key, other = guarded.key("shop", requests_per_minute=3), guarded.key("other")
    bad = guarded.ask(key, "POST", "/v1/completions", {"model": "orders"})
    assert bad.status == 400  # a request like any other
    assert [guarded.complete(key).status for _ in range(3)] == [200, 200, 429]
    answer = guarded.complete(key)
    assert (answer.error["code"], answer.error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    with guarded.server.openai(key) as client, pytest.raises(openai.RateLimitError):
        client.completions.create(model="orders", prompt="Hi")
    assert guarded.complete(other).status == 200


def test_rates_are_exact_however_many_ask_at_once(guarded: Guarded) -> None:
    key = guarded.key("shop", requests_per_minute=10)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: guarded.complete(key).status, range(30)))
    assert statuses.count(200) == 10
    assert statuses.count(429) == 20


def test_tokens_a_day(guarded: Guarded) -> None:
    key = guarded.key("shop", tokens_per_day=30)
    assert guarded.complete(key).json["usage"]["total_tokens"] == 5
    assert guarded.used("shop") == 5
    answer = guarded.complete(key, max_tokens=24)  # 2 + 24 are one more than are left
    assert (answer.status, answer.error["code"]) == (429, "insufficient_quota")
    assert 0 < int(answer.headers["retry-after"]) <= 86400
    assert guarded.used("shop") == 5
    assert guarded.complete(key, max_tokens=23).json["usage"]["total_tokens"] == 25
    assert guarded.used("shop") == 30
    assert guarded.ask(key, "POST", "/v1/classify", {"model": "tone", "input": "a"}).status == 429
    assert guarded.complete(guarded.key("other")).status == 200
    assert guarded.used("other") == 5


def test_classification_and_refused_inputs_count_what_was_read(guarded: Guarded) -> None:
    key = guarded.key("shop", tokens_per_day=1000)
    guarded.ask(key, "POST", "/v1/classify", {"model": "tone", "input": ["abc", "de"]})
    assert guarded.used("shop") == 5
    wrong = guarded.ask(key, "POST", "/v1/classify", {"model": "tone", "input": ["abc", {"nor": "this"}, "abc"]})
    assert wrong.status == 400
    assert eventually(lambda: guarded.used("shop") == 8)


def test_several_prompts_are_refused_whole(guarded: Guarded) -> None:
    key = guarded.key("shop", tokens_per_day=12)
    answer = guarded.complete(key, prompt=["wait", "ab", "cd"], max_tokens=3)  # 7, 5, and no room for the third
    assert answer.status == 429
    assert guarded.server.hub.streams[0].cancelled.wait(10)
    assert eventually(lambda: guarded.used("shop") == 0)


def test_quotas_are_exact_however_many_ask_at_once(guarded: Guarded) -> None:
    key = guarded.key("shop", tokens_per_day=100)

    def ask(number: int) -> int:
        answer = guarded.complete(key, stream=bool(number % 2), stream_options=None)
        return answer.status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(60)))
    assert set(statuses) == {200, 429}
    assert eventually(lambda: guarded.used("shop") == 5 * statuses.count(200))
    assert guarded.used("shop") <= 100
    while guarded.complete(key).status == 200:
        pass
    assert guarded.used("shop") == 100


def test_a_client_that_leaves_pays_what_it_had(guarded: Guarded) -> None:
    key = guarded.key("shop", tokens_per_day=1000)
    body = {"model": "orders", "prompt": "wait", "max_tokens": 500, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guarded.server.port), timeout=30) as raw:
        raw.sendall(head.encode() + data)
        guarded.server.hub.allow(3)
        while b"data:" not in raw.recv(65536):
            pass
        assert guarded.used("shop") == 504  # all that the answer may need
    assert eventually(lambda: 4 < guarded.used("shop") <= 7)


def test_a_restart_forgets_no_token(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, key = file.create("shop", tokens_per_day=12)
    for expected in (200, 200, 429):
        access = Access(file.path)
        with running(FakeHub(), access=access) as server:
            assert Guarded(server, file, access).complete(key).status == expected


def test_a_broken_or_missing_file_changes_nothing(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    key = guarded.key("shop")
    assert guarded.complete(key).status == 200
    text = guarded.file.path.read_text()
    for break_it in (lambda: guarded.file.path.write_text("{"), guarded.file.path.unlink):
        break_it()
        with caplog.at_level(logging.ERROR, logger="adapterhub.server"):
            assert guarded.complete(key).status == 200
            assert guarded.complete("ah_other").status == 401
        assert sum("keys stay as they were" in record.getMessage() for record in caplog.records) == 1
        caplog.clear()
    guarded.file.path.write_text(text)
    os.utime(guarded.file.path, ns=(1, 1))
    guarded.file.revoke("shop")
    assert guarded.complete(key).status == 401


def test_the_log_names_the_key_and_never_shows_it(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    key = guarded.key("shop")
    with caplog.at_level(logging.INFO, logger="adapterhub.server"):
        guarded.complete(key)
        guarded.complete("ah_wrong")

        def keys() -> list[str | None]:
            lines = [json.loads(r.getMessage()) for r in caplog.records if r.getMessage().startswith("{")]
            return [line.get("key") for line in lines]

        assert eventually(lambda: len(keys()) == 2)  # a line is written after the answer is out
    assert keys() == ["shop", None]
    assert key not in caplog.text


def test_every_key_of_many_is_found(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    texts = {name: file.create(name)[1] for name in ("a", "b", "c")}
    access = Access(file.path, "fixed")
    for name, text in texts.items():
        found = access.find(f"Bearer {text}")
        assert found is not None
        assert found.name == name
        for wrong in (text, f"Basic {text}", f"Bearer {text[:-1]}", f"Bearer {text}x", "Bearer", ""):
            assert access.find(wrong) is None
    fixed = access.find("bearer fixed")
    assert fixed is not None
    assert fixed.admin
    assert access.visitor(fixed).meter is None
    access.close()


def test_exposure_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--keys"):
        check_exposure(ServerOptions("0.0.0.0"))
    check_exposure(ServerOptions("0.0.0.0", keys=tmp_path / "keys.json"))
    check_exposure(ServerOptions("0.0.0.0", insecure=True))
    with pytest.raises(FileMissing):
        make_access(ServerOptions(keys=tmp_path / "none.json"))
    assert make_access(ServerOptions()) is None
