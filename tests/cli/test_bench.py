"""`adapterhub bench serve` as people run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.cli.main import run
from adapterhub.server.access import Access
from tests.bench.test_bench import PNG
from tests.server.fake import FakeHub, eventually
from tests.server.running import Running, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeHub(), access=Access(api_key="sesame")) as each:
        yield each


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        run(["bench", "serve", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out, " ".join(err.split())


@pytest.fixture
def known(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("BENCH_KEY", "sesame")
    small = ["--prompt-words", "4", "--max-tokens", "3"]
    return [f"http://127.0.0.1:{server.port}", "--key-variable", "BENCH_KEY", *small]


def test_a_table_and_json_and_a_plot(known: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    options = ["--rates", "400,200", "--requests", "2", "--json", "--plot", str(plot)]
    code, out, said = bench(capsys, *known, *options)
    assert code == 0
    record = json.loads(out)
    assert out.count("\n") == 1
    assert [(each["rate"], each["sent"], each["answered"]) for each in record["runs"]] == [(200.0, 2, 2), (400.0, 2, 2)]
    assert list(record["models"]) == ["notes", "orders"]
    for shown in ("200/s 400/s", "answered 2 2", "first token, ms: p50 / p90 / p99", "2 models (zipf)", str(plot)):
        assert shown in said
    assert plot.read_bytes().startswith(PNG)


def test_askers_at_once_and_failures(known: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--concurrency", "2", "--requests", "9", "--models", "orders, gone", "--popularity", "uniform"]
    code, out, said = bench(capsys, *known, *options)
    assert (code, out) == (0, "")
    assert "2 at once: " in said
    assert "failed (404): " in said
    assert "no task 'gone'" in said


def test_nothing_answered_is_an_error(known: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--models", "gone", "--rates", "300,400", "--requests", "3", "--plot", str(tmp_path / "plot.png")]
    code, _, said = bench(capsys, *known, *options)
    assert code == 1
    assert "answered none of 3 requests" in said
    assert list(tmp_path.iterdir()) == []


def test_a_time_in_which_nothing_arrives(known: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = bench(capsys, *known, "--rates", "0.001,0.002", "--seconds", "0.01")
    assert code == 2
    assert "0.002/s" in said  # a low rate without requests does not end the row
    assert "--seconds" in said


def test_a_key_that_is_missing(known: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = bench(capsys, known[0])
    assert code == 1
    assert "--key-variable" in said
    code, _, said = bench(capsys, known[0], "--key-variable", "NOT_SET_AT_ALL")
    assert code == 1
    assert "$NOT_SET_AT_ALL" in said


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, out, said = bench(capsys, url)
    assert (code, out) == (1, "")
    assert f"no server at {url}" in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rates", "1,fast"), "'1,fast'"),
        (("--rates", "0"), "above 0"),
        (("--rates", "inf"), "above 0"),
        (("--rates", "1", "--concurrency", "2"), "give one"),
        (("--plot", "no/such/folder/plot.png"), "no such folder"),
    ],
)
def test_calls_that_make_no_sense(options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, said = bench(capsys, "http://127.0.0.1:9", *options)
    assert (code, out) == (2, "")
    assert told in said


@pytest.mark.parametrize("some", [True, False])
def test_ctrl_c_tells_what_there_is(
    some: bool, server: Running, known: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not some:  # none is ever whole: the hub waits where the prompt says so
        monkeypatch.setattr("adapterhub.bench.workload._WORDS", ("wait",))
    before = len(server.hub.requests)

    def stop() -> None:
        if eventually(lambda: len(server.hub.requests) >= before + 5):
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=stop)
    watcher.start()
    code, out, said = bench(capsys, *known, "--rates", "50", "--seconds", "60", "--json")
    watcher.join()
    assert code == 130
    (found,) = json.loads(out)["runs"]
    assert found["interrupted"] is True
    assert (found["answered"] > 0) is some
    assert "requests were under way" in said
