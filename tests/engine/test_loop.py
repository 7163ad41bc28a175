"""The engine's thread: it wakes everybody, whatever happens to it."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from adapterhub.engine.engine import Engine
from adapterhub.engine.loop import EngineLoop
from adapterhub.engine.request import Event, FailedEvent, Request, Sampling, TokenEvent
from adapterhub.engine.scheduler import Limits
from adapterhub.errors import Cancelled, Overloaded, PromptTooLong, UsageError
from tests.tiny import make_tiny_base

from .support import make_engine
from .test_lives import RealDisk


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"), "llama")


class Asker:
    def __init__(self, max_tokens: int) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.request = Request((5, 6, 7), self.events.put, Sampling(max_tokens, temperature=0.0))

    def next(self) -> Event:
        return self.events.get(timeout=60)


def test_answers_arrive_and_wrong_requests_rise_in_the_caller(base: Path) -> None:
    loop = EngineLoop(lambda: make_engine(base, "llama"), threads=1)
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
    loop = EngineLoop(lambda: make_engine(base, "llama"), threads=1)

    def broken(event: Event) -> None:
        raise RuntimeError("a sink")

    loop.submit(Request((5, 6), broken, Sampling(4, temperature=0.0)))
    asker = Asker(6)
    loop.submit(asker.request)
    assert [type(asker.next()) for _ in range(6)] == [TokenEvent] * 6
    loop.close()


def test_a_step_that_fails_tells_all_and_the_engine_goes_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(base, "llama")
    loop = EngineLoop(lambda: engine, threads=1)
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


def test_a_fault_outside_the_forward_ends_all_and_the_engine_goes_on(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(base, "llama")
    loop = EngineLoop(lambda: engine, threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(engine.scheduler, "schedule", lambda: (_ for _ in ()).throw(KeyError("a bug")))
        patched.setattr(engine, "unpin", lambda digest: (_ for _ in ()).throw(KeyError("another")))
        first = Asker(3)
        loop.submit(first.request)
        loop.unpin("a")
        told = first.next()
        assert isinstance(told, FailedEvent)
        assert isinstance(told.error, KeyError)
        loop.pin("answered once the fault was handled")
    second = Asker(1)
    loop.submit(second.request)
    assert isinstance(second.next(), TokenEvent)
    loop.close()


def test_a_full_queue_is_told_to_the_one_who_came_last(base: Path) -> None:
    engine, disk = make_engine(base, "llama", limits=Limits(queue=1)), RealDisk()
    loop = EngineLoop(lambda: engine, threads=1)
    disk.gate.clear()
    waits, late = ColdAsker(disk, "cold"), Asker(1)
    loop.submit(waits.request)
    loop.submit(late.request)
    told = late.next()
    assert isinstance(told, FailedEvent)
    assert isinstance(told.error, Overloaded)
    disk.gate.set()
    assert isinstance(waits.next(), TokenEvent)
    loop.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_wakes_those_who_wait(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(base, "llama")

    def die() -> None:
        raise SystemExit

    loop = EngineLoop(lambda: engine, threads=1)
    monkeypatch.setattr(engine, "step", die)
    asker = Asker(3)
    loop.submit(asker.request)
    told = asker.next()
    assert isinstance(told, FailedEvent)
    assert isinstance(told.error, Cancelled)
    with pytest.raises(Cancelled):
        loop.submit(Asker(3).request)
    loop.close()


def watch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[list[bool], threading.Semaphore]:
    """Record what every step returns, and release a semaphore for each that ran nothing."""
    steps: list[bool] = []
    idle = threading.Semaphore(0)
    step = engine.step

    def watched() -> bool:
        steps.append(step())
        if not steps[-1]:
            idle.release()
        return steps[-1]

    monkeypatch.setattr(engine, "step", watched)
    return steps, idle


class ColdAsker(Asker):
    """Asks an adapter whose reading waits for `gate`."""

    def __init__(self, disk: RealDisk, digest: str, max_tokens: int = 2) -> None:
        super().__init__(max_tokens)
        self.request.adapter = disk.adapter(digest)


def test_the_loop_sleeps_while_an_adapter_loads_and_wakes_when_it_is_there(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, disk = make_engine(base, "llama"), RealDisk()
    steps, idle = watch(engine, monkeypatch)
    loop = EngineLoop(lambda: engine, threads=1)
    disk.gate.clear()
    cold, other = ColdAsker(disk, "cold"), Asker(1)
    loop.submit(cold.request)
    assert disk.entered.acquire(timeout=60)
    assert idle.acquire(timeout=60)
    loop.submit(other.request)
    assert isinstance(other.next(), TokenEvent)
    assert idle.acquire(timeout=60)
    disk.gate.set()
    assert [type(cold.next()) for _ in range(2)] == [TokenEvent] * 2
    loop.close()
    # A loop that spun would have stepped thousands of times.
    assert len(steps) < 12


def test_giving_up_while_an_adapter_loads_wakes_the_loop(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, disk = make_engine(base, "llama"), RealDisk()
    steps, idle = watch(engine, monkeypatch)
    loop = EngineLoop(lambda: engine, threads=1)
    disk.gate.clear()
    cold = ColdAsker(disk, "cold")
    loop.submit(cold.request)
    assert disk.entered.acquire(timeout=60)
    for _ in range(2):
        assert idle.acquire(timeout=60)
        if loop.engine.busy:
            loop.cancel(cold.request)
    assert not engine.busy
    assert steps == [False, False]
    disk.gate.set()
    loop.close()
    assert cold.events.empty()


def test_closing_ends_those_whose_adapter_is_still_loading(base: Path) -> None:
    engine, disk = make_engine(base, "llama"), RealDisk()
    loop = EngineLoop(lambda: engine, threads=1)
    disk.gate.clear()
    cold = ColdAsker(disk, "cold")
    loop.submit(cold.request)
    assert disk.entered.acquire(timeout=60)
    loop.close()
    told = cold.next()
    assert isinstance(told, FailedEvent)
    assert isinstance(told.error, Cancelled)
    disk.gate.set()
    with pytest.raises(Cancelled):
        loop.forget("cold")


def test_draining_waits_for_a_load_and_its_answer(base: Path) -> None:
    engine, disk = make_engine(base, "llama"), RealDisk()
    loop = EngineLoop(lambda: engine, threads=1)
    disk.gate.clear()
    cold = ColdAsker(disk, "cold")
    loop.submit(cold.request)
    assert disk.entered.acquire(timeout=60)
    closer = threading.Thread(target=loop.close, args=(60.0,))
    closer.start()
    disk.gate.set()
    assert [type(cold.next()) for _ in range(2)] == [TokenEvent] * 2
    closer.join(60)
    assert not closer.is_alive()


def test_pins_and_their_errors_come_back_to_the_caller(base: Path) -> None:
    loop = EngineLoop(lambda: make_engine(base, "llama", resident=2), threads=1)
    loop.pin("a")
    with pytest.raises(UsageError, match="cannot pin b"):
        loop.pin("b")
    loop.unpin("a")
    loop.pin("b")
    loop.forget("b")
    loop.pin("c")
    loop.close()


def test_what_building_raises_rises_in_the_caller() -> None:
    def make() -> Engine:
        raise MemoryError("no room for the base")

    with pytest.raises(MemoryError, match="no room"):
        EngineLoop(make)


def test_the_engine_is_built_in_the_thread_that_runs_it(base: Path) -> None:
    built: list[threading.Thread] = []

    def make() -> Engine:
        built.append(threading.current_thread())
        return make_engine(base, "llama")

    loop = EngineLoop(make, threads=1)
    assert built == [loop._thread]
    loop.close()
