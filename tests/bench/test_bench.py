"""Load over a real socket: on our server, with a hub anyone can compute and with the real engine, and on others."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bench.drive import Load
from adapterhub.bench.endpoint import Endpoint
from adapterhub.bench.plot import draw
from adapterhub.bench.run import Report, bench
from adapterhub.bench.summary import Measured
from adapterhub.bench.timing import Timing
from adapterhub.bench.workload import Popularity, Workload
from adapterhub.errors import EndpointError, UsageError
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from tests.server.fake import FakeHub, eventually
from tests.server.publishing import make_base, publish
from tests.server.running import Running, running

PNG = b"\x89PNG\r\n\x1a\n"
TINY = Workload((), prompt_words=4, max_tokens=5)


@pytest.fixture
def server() -> Iterator[Running]:
    with running(FakeHub()) as each:
        yield each


def at(server: Running) -> Endpoint:
    return Endpoint.parse(f"http://127.0.0.1:{server.port}")


@contextmanager
def scripted(*answers: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    """A server that gives these answers, one a connection, and then the last one again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def work() -> None:
            rest = list(answers)
            while True:
                try:
                    raw, _ = listener.accept()
                except OSError:
                    return
                try:
                    connection = raw if tls is None else tls.wrap_socket(raw, server_side=True)
                except OSError:  # a client that does not trust us
                    raw.close()
                    continue
                with connection:
                    asked = connection.recv(1 << 16)
                    if asked:
                        connection.sendall(rest.pop(0) if len(rest) > 1 else rest[0])

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            scheme = "http" if tls is None else "https"
            yield Endpoint.parse(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1/")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def answer(body: str, status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", body]).encode()


def stream(*events: str) -> bytes:
    return answer("".join(f"data: {event}\n\n" for event in events))


TEXT = '{"choices": [{"text": "a"}]}'


def once(endpoint: Endpoint, **load: Any) -> Report:
    """One request for the model `m`."""
    return bench(endpoint, Workload(("m",)), [Load(requests=1, **load)])


def test_every_request_is_asked_and_counted(server: Running) -> None:
    heard: list[float | None] = []
    loads = [Load(rate=400.0, requests=30)]
    report = bench(at(server), TINY, loads, lambda load, timing: heard.append(load.rate))
    (run,) = report.runs
    assert (run.sent, len(run.answered), run.errors) == (30, 30, {})
    assert heard == [400.0] * 30
    # The listed adapters that write text, by their share, and each prompt as it was drawn.
    assert report.workload.models == ("notes", "orders")
    record = report.to_record()
    assert record["models"] == {"notes": pytest.approx(2 / 3), "orders": pytest.approx(1 / 3)}
    assert record["runs"][0]["tokens"] == 30 * 5
    drawn = [ask for ask, _ in zip(report.workload.asks(), range(30), strict=False)]
    assert Counter(each.text for each in server.hub.requests) == Counter(ask.body["prompt"] for ask in drawn)
    assert record["runs"][0]["models"] == dict(Counter(ask.model for ask in drawn))
    assert record["runs"][0]["prompt_tokens"] == sum(len(ask.body["prompt"]) for ask in drawn)
    for each in run.answered:
        assert each.first is not None
        assert each.last is not None
        assert each.start <= each.first <= each.last <= each.end
    assert run.token is not None
    assert run.token.count == 30


def test_askers_who_wait_are_never_more_than_said(server: Running) -> None:
    report = bench(at(server), Workload(("orders",), max_tokens=3, chat=True), [Load(concurrency=3, requests=12)])
    (run,) = report.runs
    assert (run.sent, len(run.answered)) == (12, 12)
    for each in run.timings:
        assert sum(other.start <= each.start < other.end for other in run.timings) <= 3
    assert server.hub.requests[0].fields is not None  # chat: the task's own input
    assert report.to_record()["route"] == "chat/completions"


@pytest.mark.parametrize("load", [Load(rate=200.0, seconds=0.1), Load(concurrency=2, seconds=0.1)])
def test_it_ends_in_time(server: Running, load: Load) -> None:
    (run,) = bench(at(server), TINY, [load]).runs
    assert run.sent == len(run.answered) > 0
    assert all(each.start <= 0.1 for each in run.timings)


def test_errors_are_counted_by_status(server: Running) -> None:
    models = ("orders", "tone", "gone")
    workload = Workload(models, Popularity.UNIFORM, prompt_words=4, max_tokens=2)
    (run,) = bench(at(server), workload, [Load(concurrency=2, requests=30)]).runs
    drawn = Counter(ask.model for ask, _ in zip(workload.asks(), range(30), strict=False))
    assert len(run.answered) == drawn["orders"]
    assert run.errors == {"400": drawn["tone"], "404": drawn["gone"]}
    assert "no task 'gone'" in run.messages["404"]
    assert run.saturated is False


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (stream(TEXT), "stream", "[DONE]"),
        (stream(TEXT, '{"error": {"message": "burnt"}}'), "stream", "burnt"),
        (stream("no json"), "stream", "OpenAI"),
        (stream("[1]"), "stream", "OpenAI"),
        (b"SSH-2.0-x\r\n", "stream", "no HTTP"),
        (b"", "connection", "ended"),
        (answer("data: x", "200 OK", "Content-Length: 99"), "connection", ""),
        (answer("zz\r\n", "200 OK", "Transfer-Encoding: chunked"), "stream", ""),
        (answer("full", "503 Busy", "Content-Length: 4"), "503", "full"),
    ],
)
def test_whatever_a_server_does_is_counted(said: bytes, error: str, message: str) -> None:
    with scripted(said) as endpoint:
        (run,) = once(endpoint).runs
    assert run.errors == {error: 1}
    assert message in run.messages[error]
    assert run.answered == []


def test_a_server_without_usage_or_chunks() -> None:
    with scripted(stream(TEXT, '{"choices": [{"delta": {"content": "b"}}]}', '{"choices": []}', "[DONE]")) as endpoint:
        (run,) = once(endpoint).runs
    assert run.errors == {}
    assert (run.timings[0].tokens, run.timings[0].prompt_tokens) == (2, 0)


def test_one_that_takes_too_long(server: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = Endpoint.parse(f"http://127.0.0.1:{silent.getsockname()[1]}")
        (run,) = once(endpoint, timeout=0.05).runs
        assert run.errors == {"timeout": 1}
        with pytest.raises(EndpointError, match="no answer in"):
            asyncio.run(endpoint.models(0.05))


@pytest.mark.parametrize("workload", [TINY, Workload(("m",))])
def test_a_server_that_is_not_there(workload: Workload) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = Endpoint.parse(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(EndpointError, match=rf"no server at http://127.0.0.1:{endpoint.port}/v1"):
            bench(endpoint, workload, [Load(requests=1)])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (answer("who?", "401 No"), "401: who.*--key-variable"),
        (answer("", "404 No"), "answered 404"),
        (answer("{}"), "no list of models"),
        (answer('{"data": []}'), "lists no model"),
        (answer('{"data": [{"id": "t", "parent": "b", "kind": "classification"}]}'), "lists no model"),
        (b"220 mail\r\n", "no list of models"),
        (b"", "no list of models"),
    ],
)
def test_lists_that_are_of_no_use(said: bytes, message: str) -> None:
    with scripted(said) as endpoint, pytest.raises(EndpointError, match=message):
        asyncio.run(endpoint.models())


def test_what_is_asked_of_a_list() -> None:
    listed = '{"data": [{"id": "b", "parent": null}, {"id": "t", "parent": "b"}, {"id": "t@1", "parent": "b"}]}'
    with scripted(answer(listed), answer('{"data": [{"id": "x"}, {"id": "y@1"}]}')) as endpoint:
        assert asyncio.run(endpoint.models()) == ["t"]
        assert asyncio.run(endpoint.models()) == ["x", "y@1"]


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://a", "http://", "http://a:b", "http://a?b", "http://[a"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        Endpoint.parse(url)


def test_urls() -> None:
    assert Endpoint.parse("https://a.b/llm/").url == "https://a.b:443/llm/v1"
    assert Endpoint.parse("http://[::1]:80/v1").url == "http://[::1]:80/v1"
    with pytest.raises(UsageError, match="header"):
        Endpoint.parse("http://a", "k\n")
    assert "secret" not in repr(Endpoint.parse("http://a", "secret"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_to_a_server_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with scripted(stream(TEXT, "[DONE]"), tls=tls) as endpoint:
        with pytest.raises(EndpointError, match=r"no server at https://.*CERTIFICATE_VERIFY_FAILED"):
            once(endpoint)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert len(once(endpoint).runs[0].answered) == 1


def test_rates_rise_until_one_is_too_much(tmp_path: Path) -> None:
    full = answer("full", "503 Busy", "Content-Length: 4")
    good = stream(TEXT, TEXT, "[DONE]")
    # Two requests never prove anything; of thirty, all but the first are sent away.
    with scripted(*[good] * 3, full) as endpoint:
        loads = [Load(rate=200.0, requests=2), *(Load(rate=rate, requests=30) for rate in (400.0, 800.0, 900.0))]
        report = bench(endpoint, Workload(("m",)), loads)
    assert [run.saturated for run in report.runs] == [False, True]
    assert report.left_out == (800.0, 900.0)
    assert report.to_record()["left_out"] == [800.0, 900.0]
    draw(report, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(PNG)
    assert [each.name for each in tmp_path.iterdir()] == ["rates.png"]


def test_each_rate_has_prompts_of_its_own(server: Running) -> None:
    bench(at(server), TINY, [Load(rate=500.0, requests=2), Load(rate=600.0, requests=2)])
    assert len({each.text for each in server.hub.requests}) == 4


def test_a_plot_of_one_load(server: Running, tmp_path: Path) -> None:
    for tokens in (1, 4):  # with one token there is no time between tokens
        report = bench(at(server), Workload(("orders",), max_tokens=tokens), [Load(requests=4)])
        draw(report, tmp_path / "one.png")
        assert (tmp_path / "one.png").read_bytes().startswith(PNG)


def test_a_plot_of_times_that_are_none_or_zero(tmp_path: Path) -> None:
    timings = (Timing("m", 0.0, 0.0, 0.0, 0.0, 1, 1), Timing("m", 1.0, 2.0, 1.5, 1.5, 1, 1))  # no time between tokens
    runs = tuple(Measured(Load(rate=rate, requests=2), timings, 2, 2.0) for rate in (1.0, 2.0))
    draw(Report(Endpoint.parse("http://127.0.0.1:1"), Workload(("m",)), runs), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_ctrl_c_keeps_what_was_measured(server: Running) -> None:
    def stop() -> None:
        if eventually(lambda: len(server.hub.requests) >= 5):
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=stop)
    watcher.start()
    report = bench(at(server), TINY, [Load(rate=100.0, requests=100_000), Load(rate=200.0, requests=9)])
    watcher.join()
    assert report.interrupted
    (run,) = report.runs
    assert run.interrupted
    assert 0 < len(run.answered) <= run.sent < 100_000
    assert run.latency is not None
    assert report.left_out == (200.0,)


def test_the_real_engine(tmp_path: Path) -> None:
    base, registry = make_base(tmp_path / "base"), Registry(tmp_path / "registry")
    for seed, name in enumerate(("alpha", "beta")):
        publish(registry, base, name, tmp_path, seed=seed)
    with AdapterHub(base=str(base.path), registry=str(registry.root), threads=1) as hub, running(hub) as server:
        workload = Workload((), Popularity.UNIFORM, prompt_words=3, max_tokens=4, ignore_eos=True)
        report = bench(at(server), workload, [Load(concurrency=4, requests=10)])
    (run,) = report.runs
    assert report.workload.models == ("alpha", "beta")
    assert (len(run.answered), run.errors) == (10, {})
    assert {each.tokens for each in run.answered} == {4}
    assert {each.model for each in run.answered} == {"alpha", "beta"}
