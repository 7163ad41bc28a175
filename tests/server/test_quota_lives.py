"""A quota over the lives of real servers: many clients at once, one server killed in the middle, one after it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from adapterhub.registry.store import Registry
from adapterhub.server.keys import Key, KeyFile
from adapterhub.server.ledger import Ledger, day_of, ledger_of

from .publishing import make_base, publish

LIMIT = 2000
PROMPT = "hello"  # five tokens: a byte each
MOST = 20


class Process:
    """`adapterhub serve` as a process."""

    def __init__(self, options: list[str], cache: Path) -> None:
        command = [sys.executable, "-m", "adapterhub", "serve", "--port", "0", "--threads", "1", *options]
        environment = {**os.environ, "ADAPTERHUB_CACHE": str(cache)}
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.child.stderr is not None
        said = []
        for line in self.child.stderr:
            said.append(line)
            if match := re.match(r"adapterhub: ready: http://127.0.0.1:(\d+)", line):
                self.port = int(match[1])
                break
        else:
            raise AssertionError("".join(said))
        self._drain = threading.Thread(target=self.child.stderr.read, daemon=True)
        self._drain.start()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        status = self.child.wait(60)
        self._drain.join(10)
        assert self.child.stderr is not None
        self.child.stderr.close()
        return status

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.end(signal.SIGKILL)


class Client:
    """Asks until it is told to stop or its quota is spent, and counts the tokens that reached it, in streams too."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.said = self.whole = self.refused = 0
        self.statuses: set[int] = set()

    def ask(self, port: int, stream: bool, most: int = MOST) -> int | None:
        """Send one request; None where the connection broke."""
        body: dict[str, Any] = {"model": "alpha", "prompt": PROMPT, "max_tokens": most, "stream": stream}
        body |= {"ignore_eos": True, "temperature": 0}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            self.statuses.add(response.status)
            if response.status == 200 and stream:
                self._read_stream(response)
            elif response.status == 200:
                self.said += json.loads(response.read())["usage"]["total_tokens"]
                self.whole += 1
            else:
                self.refused += 1
                assert json.loads(response.read())["error"]["code"] == "insufficient_quota"
                assert int(response.headers["retry-after"]) >= 1
            return response.status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _read_stream(self, response: http.client.HTTPResponse) -> None:
        """Count the prompt and a token an event as they come: the server may not live to say how many they were."""
        self.said += len(PROMPT)
        while line := response.readline():
            if line.startswith(b"data: {"):
                self.said += 1
            elif line.startswith(b"data: [DONE]"):
                self.whole += 1


def used(keys: Path, key: Key) -> int:
    ledger = Ledger(ledger_of(keys))
    try:
        return ledger.used(key.id, day_of(time.time()))
    finally:
        ledger.close()


def test_a_quota_holds_over_many_clients_and_a_kill(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    registry = Registry(tmp_path / "registry")
    publish(registry, base, "alpha", tmp_path)
    file = KeyFile(tmp_path / "keys.json")
    key, text = file.create("poor", tokens_per_day=LIMIT)
    options = ["--base", str(base.path), "--registry", str(registry.root), "--keys", str(file.path)]
    clients = [Client(text) for _ in range(8)]
    highest = [0]

    def rounds(client: Client, port: int, count: int) -> None:
        for number in range(count):
            status = client.ask(port, stream=number % 2 == 0)
            highest[0] = max(highest[0], used(file.path, key))
            if status is None:
                return

    with Process(options, tmp_path / "cache") as doomed, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(rounds, client, doomed.port, 6) for client in clients]
        while sum(client.whole for client in clients) < 6 and not all(each.done() for each in asking):
            time.sleep(0.005)
        assert doomed.end(signal.SIGKILL) == -signal.SIGKILL
        for each in asking:
            each.result()
    before = used(file.path, key)
    assert sum(client.said for client in clients) <= before <= LIMIT
    # What the killed one had taken stays taken; a new server goes on from there, to the very last token.
    with Process(options, tmp_path / "cache") as again, ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(rounds, client, again.port, 20) for client in clients]:
            each.result()
        left = LIMIT - used(file.path, key)
        assert 0 <= left < len(PROMPT) + MOST
        last = Client(text)
        exact = last.ask(again.port, stream=False, most=left - len(PROMPT)) if left > len(PROMPT) else None
        assert last.ask(again.port, stream=False, most=1) == 429
        assert again.end() == 0
    assert highest[0] <= LIMIT
    said = sum(client.said for client in (*clients, last))
    assert before <= used(file.path, key) <= LIMIT
    assert said <= used(file.path, key)
    if exact is not None:
        assert exact == 200
        assert used(file.path, key) == LIMIT
    assert sum(client.refused for client in clients) > 0
    assert set().union(*(client.statuses for client in clients)) == {200, 429}
