"""Slots: who sits where, who leaves, and what stays."""

from __future__ import annotations

import pytest

from adapterhub.engine.runner import HostAdapter
from adapterhub.engine.slots import Slots
from adapterhub.lora.ops import NO_SLOT

from .stand_ins import Disk, host

DISK = Disk()


class Device:
    """Records what lies in each slot."""

    def __init__(self) -> None:
        self.content: dict[int, HostAdapter] = {}
        self.fails = False

    def load(self, slot: int, adapter: HostAdapter) -> None:
        assert slot not in self.content
        self.content[slot] = adapter
        if self.fails:
            raise MemoryError

    def unload(self, slot: int) -> None:
        self.content.pop(slot, None)


def make(capacity: int) -> tuple[Slots, Device]:
    device = Device()
    return Slots(capacity, device.load, device.unload), device


def take(slots: Slots, *digests: str) -> list[int | None]:
    return [slots.acquire(DISK.adapter(digest), host()) for digest in digests]


def visit(slots: Slots, *digests: str) -> list[int | None]:
    """Use adapters one after the other, leaving each idle."""
    found = []
    for digest in digests:
        (slot,) = take(slots, digest)
        assert slot is not None
        slots.release(slot)
        found.append(slot)
    return found


def test_the_same_digest_shares_a_slot_and_needs_no_second_load() -> None:
    slots, _ = make(2)
    assert take(slots, "a", "a") == [0, 0]
    assert slots.acquire(DISK.adapter("a"), None) == 0
    assert slots.loads == 1


def test_the_base_needs_no_slot() -> None:
    slots, _ = make(1)
    take(slots, "a")
    assert slots.acquire(None, None) == NO_SLOT
    slots.release(NO_SLOT)


def test_slots_in_use_are_never_given_away() -> None:
    slots, _ = make(2)
    take(slots, "a", "b", "b")
    assert take(slots, "c") == [None]
    assert not slots.available("c")
    assert slots.available("a")
    slots.release(1)
    assert take(slots, "c") == [None]
    slots.release(1)
    assert take(slots, "c") == [1]
    assert slots.resident == ("a", "c")


def test_newcomers_take_the_lowest_empty_slot_and_evict_nobody_while_there_is_one() -> None:
    slots, _ = make(4)
    visit(slots, "a", "b", "c")
    slots.drop("b")
    assert visit(slots, "d", "e") == [1, 3]
    assert slots.evictions == 0


def test_the_more_recent_half_stays_and_the_lowest_of_the_rest_leaves() -> None:
    slots, device = make(4)
    assert visit(slots, "a", "b", "c", "d") == [0, 1, 2, 3]
    visit(slots, "a")
    # Least recently used first: b, c, d, a. Of b and c, b lies lower.
    assert visit(slots, "e") == [1]
    # c, d, a, e: of c (2) and d (3), c.
    assert visit(slots, "f") == [2]
    # d, a, e, f: of d (3) and a (0), a, though d was used longer ago.
    assert visit(slots, "g") == [0]
    assert set(slots.resident) == {"d", "e", "f", "g"}
    assert slots.evictions == 3
    assert len(device.content) == 4


def test_a_single_idle_slot_is_found() -> None:
    slots, _ = make(3)
    take(slots, "a", "b", "c")
    slots.release(2)
    assert take(slots, "d") == [2]


def test_pinned_adapters_stay_until_unpinned() -> None:
    slots, _ = make(2)
    slots.pin("a")
    visit(slots, "a", "b", "c", "d")
    assert set(slots.resident) == {"a", "d"}
    take(slots, "d")
    assert take(slots, "e") == [None]
    slots.unpin("a")
    assert take(slots, "e") == [0]


def test_a_load_that_fails_leaves_nothing_behind() -> None:
    slots, device = make(1)
    device.fails = True
    with pytest.raises(MemoryError):
        take(slots, "a")
    assert not device.content
    assert not slots.resident
    device.fails = False
    assert take(slots, "b") == [0]


def test_dropping_empties_an_idle_slot_and_leaves_one_in_use() -> None:
    slots, device = make(2)
    take(slots, "used")
    visit(slots, "idle")
    for digest in ("used", "idle", "unknown"):
        slots.drop(digest)
    assert slots.resident == ("used",)
    assert list(device.content) == [0]


def test_the_least_used_is_named_for_draining() -> None:
    slots, _ = make(4)
    assert slots.least_used() is None
    take(slots, "a", "a", "b", "c", "c")
    visit(slots, "idle")
    assert slots.least_used() == "b"
    slots.pin("b")
    assert slots.least_used() == "a"


def test_slots_stay_few_over_many_adapters() -> None:
    slots, device = make(3)
    visit(slots, *(f"a{number}" for number in range(100)))
    assert len(slots) == len(device.content) == 3
    assert slots.loads == 100
    assert slots.evictions == 97
