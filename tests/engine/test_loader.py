"""Host memory: what is read, once, what stays, and what a failure costs."""

from __future__ import annotations

import threading

import pytest

from adapterhub.engine.loader import Load, Loader
from adapterhub.errors import Cancelled

from .stand_ins import PATIENCE, Disk, prepare, settle


def make(budget: int = 1000) -> Loader:
    return Loader(budget, prepare)


def read(loader: Loader, disk: Disk, *digests: str) -> list[Load]:
    loads = [loader.hold(disk.adapter(digest), digest) for digest in digests]
    settle(loader)
    return loads


def test_an_adapter_is_read_as_soon_as_it_is_held() -> None:
    loader, disk = make(), Disk()
    (load,) = read(loader, disk, "a")
    assert load.host is not None
    assert loader.adapters == ("a",)
    assert loader.bytes == 100
    assert loader.reads == 1


def test_two_requests_for_one_cold_digest_read_it_once() -> None:
    loader, disk = make(), Disk()
    disk.gate.clear()
    first = loader.hold(disk.adapter("a"), "x")
    assert disk.entered.acquire(timeout=PATIENCE)
    second = loader.hold(disk.adapter("a"), "y")
    disk.gate.set()
    settle(loader)
    assert first is second
    assert disk.reads == ["a"]
    assert loader.hold(disk.adapter("a"), "z").host is first.host


def test_a_failing_read_fails_those_who_wait_for_it_and_is_not_remembered() -> None:
    loader, disk = make(), Disk()
    disk.broken.add("bad")
    bad, good = read(loader, disk, "bad", "good")
    assert isinstance(bad.error, OSError)
    assert good.host is not None
    assert loader.adapters == ("good",)
    disk.broken.clear()
    (again,) = read(loader, disk, "bad")
    assert again.host is not None
    assert isinstance(bad.error, OSError)
    loader.release(bad)
    assert "bad" in loader.adapters


def test_preparing_that_fails_is_the_adapters_own_error() -> None:
    def refuse(*_: object) -> None:
        raise ValueError("does not fit")

    loader = Loader(1000, refuse)  # type: ignore[arg-type]
    (load,) = read(loader, Disk(), "a")
    assert isinstance(load.error, ValueError)
    assert loader.bytes == 0


def test_even_an_exit_in_a_read_wakes_those_who_wait() -> None:
    loader, disk = make(), Disk()

    def leave() -> None:
        raise SystemExit

    adapter = disk.adapter("a")
    load = loader.hold(type(adapter)("a", leave), "a")  # type: ignore[arg-type]
    settle(loader)
    assert load.error is not None
    assert "SystemExit" in str(load.error)
    assert read(loader, disk, "b")[0].host is not None


def test_the_least_recently_used_leaves_when_the_budget_is_spent() -> None:
    loader, disk = make(250), Disk()
    for digest in "abc":
        loader.release(read(loader, disk, digest)[0])
    assert loader.adapters == ("b", "c")
    loader.touch("b")
    loader.release(read(loader, disk, "d")[0])
    assert loader.adapters == ("b", "d")


def test_what_is_held_or_pinned_stays() -> None:
    loader, disk = make(100), Disk()
    (held,) = read(loader, disk, "held")
    loader.pin("pinned")
    loader.release(held)
    loader.release(read(loader, disk, "pinned")[0])
    (kept,) = read(loader, disk, "kept")
    assert loader.adapters == ("pinned", "kept")
    loader.release(kept)
    assert loader.adapters == ("pinned",)
    loader.unpin("pinned")
    loader.release(read(loader, disk, "last")[0])
    assert loader.adapters == ("last",)


def test_reading_ahead_stops_while_held_adapters_fill_the_budget() -> None:
    loader, disk = make(150), Disk()
    loads = [loader.hold(disk.adapter(digest), digest) for digest in "abcd"]
    for count in (2, 3, 4):
        settle(loader)
        assert disk.reads == list("abcd")[:count]
        assert loader.loading == 4 - count
        assert loader.bytes == 200
        loader.release(loads.pop(0))
    settle(loader)
    assert len(disk.reads) == 4


def test_a_share_of_many_cold_adapters_keeps_another_waiting_for_one_read() -> None:
    loader, disk = make(), Disk(1)
    disk.gate.clear()
    for number in range(20):
        loader.hold(disk.adapter(f"flood{number}"), "flood")
    assert disk.entered.acquire(timeout=PATIENCE)
    loader.hold(disk.adapter("quiet"), "quiet")
    disk.gate.set()
    settle(loader)
    assert len(disk.reads) == 21
    assert disk.reads.index("quiet") <= 2


def test_what_nobody_waits_for_any_more_is_not_read() -> None:
    loader, disk = make(), Disk()
    disk.gate.clear()
    loader.hold(disk.adapter("first"), "s")
    assert disk.entered.acquire(timeout=PATIENCE)
    given_up = loader.hold(disk.adapter("given up"), "s")
    loader.release(given_up)
    assert loader.loading == 1
    disk.gate.set()
    settle(loader)
    assert disk.reads == ["first"]


def test_a_read_under_way_for_nobody_is_kept_for_the_next() -> None:
    loader, disk = make(), Disk()
    disk.gate.clear()
    load = loader.hold(disk.adapter("a"), "a")
    assert disk.entered.acquire(timeout=PATIENCE)
    loader.release(load)
    disk.gate.set()
    settle(loader)
    assert loader.hold(disk.adapter("a"), "a").host is not None
    assert disk.reads == ["a"]


def test_what_is_dropped_while_it_is_read_is_thrown_away() -> None:
    loader, disk = make(), Disk()
    disk.gate.clear()
    load = loader.hold(disk.adapter("a"), "a")
    assert disk.entered.acquire(timeout=PATIENCE)
    loader.release(load)
    loader.drop("a")
    other = loader.hold(disk.adapter("b"), "b")
    disk.gate.set()
    settle(loader)
    assert other.host is not None
    assert loader.adapters == ("b",)


def test_dropping_what_is_held_does_nothing() -> None:
    loader, disk = make(), Disk()
    (load,) = read(loader, disk, "a")
    loader.drop("a")
    assert loader.adapters == ("a",)
    loader.release(load)
    loader.drop("a")
    assert loader.bytes == 0


def test_memory_is_flat_over_many_adapters() -> None:
    loader, disk = make(500), Disk()
    sizes = set()
    for number in range(200):
        loader.release(read(loader, disk, f"a{number}")[0])
        sizes.add(loader.bytes)
    assert max(sizes) <= 500
    assert len(loader.adapters) == 5
    assert loader.reads == 200


def test_closing_tells_those_who_wait_and_reads_no_more() -> None:
    loader, disk = make(), Disk()
    heard = threading.Event()
    loader.on_news = heard.set
    disk.gate.clear()
    reading, waits = loader.hold(disk.adapter("a"), "a"), loader.hold(disk.adapter("b"), "b")
    assert disk.entered.acquire(timeout=PATIENCE)
    loader.close()
    assert heard.is_set()
    disk.gate.set()
    for load in (reading, waits, loader.hold(disk.adapter("c"), "c")):
        assert isinstance(load.error, Cancelled)
        loader.release(load)
    assert disk.reads == ["a"]
    assert loader.bytes == 0


def test_news_is_told_for_good_and_bad() -> None:
    loader, disk = make(), Disk()
    disk.broken.add("bad")
    heard = threading.Semaphore(0)
    loader.on_news = heard.release
    for digest in ("good", "bad"):
        loader.hold(disk.adapter(digest), digest)
        assert heard.acquire(timeout=PATIENCE)
    assert not heard.acquire(blocking=False)


@pytest.mark.parametrize("threads", [8])
def test_races_of_many_threads_read_each_once_and_leave_nothing_held(threads: int) -> None:
    loader, disk = make(10_000), Disk()
    start = threading.Barrier(threads)

    def ask() -> None:
        start.wait()
        for _ in range(20):
            for digest in "abc":
                loader.release(loader.hold(disk.adapter(digest), digest))

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    settle(loader)
    loads = read(loader, disk, "a", "b", "c")
    assert [load.holds for load in loads] == [1, 1, 1]
    assert sorted(disk.reads) == ["a", "b", "c"]
    assert loader.bytes == 300
