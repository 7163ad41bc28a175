"""`adapterhub serve` as people run it: a process, a URL on stderr, a signal."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.main import run
from adapterhub.errors import BaseMismatch, CorruptAdapter, RefNotFound, UsageError
from adapterhub.registry.store import Registry
from adapterhub.server.run import is_loopback
from adapterhub.server.startup import HubOptions, choose_base, open_hub
from tests.registry.making import OTHER_FINGERPRINT, make_card, make_folder
from tests.server.publishing import make_base, publish


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ADAPTERHUB_API_KEY", raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        run(["serve", *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, " ".join(err.split())


def test_serves_until_sigterm(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    registry = Registry(tmp_path / "registry")
    published = publish(registry, base, "alpha", tmp_path)
    options = ["--base", str(base.path), "--registry", str(registry.root), "--port", "0", "--adapters", "alpha@1"]
    options += ["--threads", "1", "--adapter-memory", "64MB", "--prefix-cache", "0", "--max-adapters", "4"]
    command = [sys.executable, "-m", "adapterhub", "serve", *options, "--weight", "alpha=2"]
    environment = {**os.environ, "ADAPTERHUB_API_KEY": "key"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            before: list[str] = []
            for line in child.stderr:
                before.append(line)
                if line.startswith("adapterhub: ready: http://127.0.0.1:"):
                    break
            ready = before[-1]
            port = int(ready.rsplit(":", 1)[1])
            answer = ask(port, {"model": "alpha", "prompt": "secret", "max_tokens": 3, "ignore_eos": True})
            child.terminate()
            rest = child.stderr.read()
            assert child.wait(60) == 0
            assert child.stdout.read() == ""
        finally:
            child.kill()
    assert answer["usage"]["completion_tokens"] == 3
    assert "computing with threads: 1 (asked for)\n" in before
    (line,) = [json.loads(each) for each in rest.splitlines() if each.startswith("{")]
    assert (line["model"], line["digest"], line["status"]) == ("alpha", published.digest, 200)
    assert "secret" not in rest
    assert "stopping" in rest


def ask(port: int, body: dict[str, Any]) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"content-type": "application/json", "authorization": "Bearer key"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_the_network_needs_a_key(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ([], ["--api-key", ""]):
        code, said = refused(capsys, "--host", host, *key)
        assert code == 2
        assert "--api-key" in said
        assert "--insecure" in said


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_what_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = refused(capsys, "--port", port, "--registry", str(tmp_path))
    assert code == 2
    assert port in said


def test_a_registry_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said = refused(capsys, "--registry", str(tmp_path / "none"))
    assert code == 2
    assert str(tmp_path / "none") in said


@pytest.mark.parametrize(
    ("refs", "error"), [("gone", RefNotFound), ("alpha@7", RefNotFound), ("alpha,foreign", BaseMismatch)]
)
def test_adapters_that_cannot_be_loaded_end_it(tmp_path: Path, refs: str, error: type[Exception]) -> None:
    base, registry = make_base(tmp_path / "base"), Registry(tmp_path / "registry")
    publish(registry, base, "alpha", tmp_path)
    publish(registry, make_base(tmp_path / "other", seed=3), "foreign", tmp_path)
    with pytest.raises(error):
        open_hub(HubOptions(registry.root, str(base.path), tuple(refs.split(",")), threads=1))


def test_a_failing_start_ends_with_its_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, registry = make_base(tmp_path / "base"), Registry(tmp_path / "registry")
    publish(registry, base, "alpha", tmp_path)
    options = ["--base", str(base.path), "--registry", str(registry.root), "--port", "0", "--adapters", "alhpa"]
    code, said = refused(capsys, *options)
    assert code == 1
    assert "alpha" in said


def test_lines_for_machines(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, registry = make_base(tmp_path / "base"), Registry(tmp_path / "registry")
    publish(registry, base, "alpha", tmp_path)
    options = ["--base", str(base.path), "--registry", str(registry.root), "--port", "0", "--adapters", "gone"]
    with pytest.raises(SystemExit):
        run(["serve", *options, "--threads", "1", "--log-format", "json", "--feedback", str(tmp_path / "feedback")])
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert lines[0]["message"].startswith("listening on http://127.0.0.1:")
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


def test_an_adapter_that_is_damaged_ends_it(tmp_path: Path) -> None:
    base, registry = make_base(tmp_path / "base"), Registry(tmp_path / "registry")
    damaged = publish(registry, base, "alpha", tmp_path).path / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CorruptAdapter, match="hash"):
        open_hub(HubOptions(registry.root, str(base.path), ("alpha",), threads=1))


def test_the_engines_size_is_as_asked(tmp_path: Path) -> None:
    base, registry = make_base(tmp_path / "base"), Registry(tmp_path / "registry")
    for seed, name in enumerate(("alpha", "beta", "gamma")):
        publish(registry, base, name, tmp_path, seed=seed)
    names = ("alpha", "beta", "gamma")
    options = HubOptions(registry.root, str(base.path), names, threads=1, resident=2, host_bytes=1, prefix_bytes=0)
    with open_hub(options) as hub:
        assert hub.stats()["resident_adapters"] == 2
        assert hub.stats()["host_adapters"] == 0
        assert hub.predict("alpha", ["once more " * 10, "once more " * 10], max_tokens=2)
        assert hub.stats()["prefix_cache_bytes"] == 0


@pytest.mark.parametrize(
    "arguments",
    [("--adapter-memory", "much"), ("--prefix-cache", "-1"), ("--weight", "alpha"), ("--max-adapters", "0")],
)
def test_sizes_that_make_no_sense(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = refused(capsys, "--registry", str(tmp_path), *arguments)
    assert code == 2
    assert arguments[0] in said


def test_the_base_is_that_of_the_tasks(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    assert choose_base(registry, ()) == "smollm2-135m-instruct"
    registry.publish("one", make_folder(tmp_path / "a"), make_card())
    registry.publish("two", make_folder(tmp_path / "b", b"other"), make_card())
    assert choose_base(registry, ()) == "tiny"
    there = make_folder(tmp_path / "c", fingerprint=OTHER_FINGERPRINT)
    record = {"name": "other", "public_id": "org/other", "fingerprint": OTHER_FINGERPRINT, "derived_from": None}
    registry.publish("three", there, make_card(base=record))
    with pytest.raises(UsageError, match="--base"):
        choose_base(registry, ())
    assert choose_base(registry, ("three",)) == "other"
    with pytest.raises(UsageError, match="--base"):
        choose_base(registry, ("one", "three"))


def test_one_broken_task_does_not_keep_the_others_away(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish("one", make_folder(tmp_path / "a"), make_card())
    registry.publish("two", make_folder(tmp_path / "b", b"other"), make_card())
    (registry.root / "two" / "index.json").write_text("{")
    assert choose_base(registry, ()) == "tiny"


def test_a_base_that_was_a_folder_must_be_named(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    publish(registry, make_base(tmp_path / "mine"), "alpha", tmp_path)
    with pytest.raises(UsageError, match="mine"):
        choose_base(registry, ())
