"""The engine's thread: it wakes everybody, whatever happens to it."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from adapterhub.engine.loop import EngineLoop
from adapterhub.engine.request import Event, FailedEvent, Request, Sampling, TokenEvent
from adapterhub.errors import Cancelled, PromptTooLong
from tests.tiny import make_tiny_base

from .support import make_engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"), "llama")


class Asker:
    def __init__(self, max_tokens: int) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.request = Request((5, 6, 7), self.events.put, None, Sampling(max_tokens, temperature=0.0))

    def next(self) -> Event:
        return self.events.get(timeout=60)


def test_answers_arrive_and_wrong_requests_rise_in_the_caller(base: Path) -> None:
    loop = EngineLoop(make_engine(base, "llama"), threads=1)
    asker = Asker(3)
    loop.submit(asker.request)
    finishes = [event.finish for event in (asker.next() for _ in range(3)) if isinstance(event, TokenEvent)]
    assert finishes == [None, None, "length"]
    with pytest.raises(PromptTooLong):
        loop.submit(Asker(10_000).request)
    loop.close()
    with pytest.raises(Cancelled):
        loop.submit(Asker(3).request)


def test_a_sink_that_raises_costs_others_nothing(base: Path) -> None:
    loop = EngineLoop(make_engine(base, "llama"), threads=1)

    def broken(event: Event) -> None:
        raise RuntimeError("a sink")

    loop.submit(Request((5, 6), broken, None, Sampling(4, temperature=0.0)))
    asker = Asker(6)
    loop.submit(asker.request)
    assert [type(asker.next()) for _ in range(6)] == [TokenEvent] * 6
    loop.close()


def test_a_step_that_fails_tells_all_and_the_engine_goes_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(base, "llama")
    loop = EngineLoop(engine, threads=1)
    run = engine.runner.run
    monkeypatch.setattr(engine.runner, "run", lambda plan: (_ for _ in ()).throw(RuntimeError("no memory")))
    first = Asker(3)
    loop.submit(first.request)
    told = first.next()
    assert isinstance(told, FailedEvent)
    assert "no memory" in str(told.error)
    monkeypatch.setattr(engine.runner, "run", run)
    second = Asker(1)
    loop.submit(second.request)
    assert isinstance(second.next(), TokenEvent)
    loop.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_wakes_those_who_wait(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(base, "llama")

    def die() -> None:
        raise SystemExit

    loop = EngineLoop(engine, threads=1)
    monkeypatch.setattr(engine, "step", die)
    asker = Asker(3)
    loop.submit(asker.request)
    told = asker.next()
    assert isinstance(told, FailedEvent)
    assert isinstance(told.error, Cancelled)
    with pytest.raises(Cancelled):
        loop.submit(Asker(3).request)
    loop.close()
