"""Requests that go away, adapters that are forgotten or pinned: what stays in which tier, and what is freed."""

from __future__ import annotations

import pytest

from adapterhub.engine.request import Classify, Score
from adapterhub.errors import UsageError

from .rig import Rig
from .stand_ins import PATIENCE, settle


@pytest.mark.parametrize("phase", ["queued", "loading", "prefilling", "decoding", "scoring"])
def test_a_request_given_up_is_gone_at_the_next_step(phase: str) -> None:
    rig = Rig(rows=1, step_tokens=20, queue=1000)
    if phase == "queued":
        rig.ask(4, 50, share="s")
        rig.step()
        request = rig.ask(4, 5, "a", share="s")
        rig.step()
    elif phase == "loading":
        rig.disk.gate.clear()
        request = rig.ask(4, 5, "a")
        assert rig.disk.entered.acquire(timeout=PATIENCE)
        rig.step(settled=False)
    elif phase == "prefilling":
        request = rig.ask(100, 5, "a")
        rig.step()
        assert request not in rig.done
    elif phase == "decoding":
        request = rig.ask(4, 50, "a")
        rig.step()
        rig.step()
    else:
        request = rig.ask(20, Score(((1, 2, 3), (4, 5, 6))), "a")
        rig.step()
    request.cancelled = True
    plan = rig.step(settled=False)
    assert request not in [row.request for row in rig.scheduler.running]
    assert request not in [row.request for row in plan.decode]
    assert not [span for span in plan.prefill if span.row.request is request]
    assert request.id not in [waiter.request.id for waiter in rig.scheduler.waiting]
    rig.disk.gate.set()
    settle(rig.loader)
    rig.run()
    rig.assert_empty()
    assert not rig.events[request.id]


def test_forgetting_frees_an_idle_adapter_at_once() -> None:
    rig = Rig()
    rig.steps_until(rig.ask(4, 2, "a"))
    rig.tiers.forget("a")
    assert rig.freed == ["a"]
    assert not rig.slots.resident
    assert not rig.loader.adapters


def test_forgetting_waits_for_the_last_request_queued_or_running() -> None:
    rig = Rig(rows=1)
    first = rig.ask(4, 5, "a")
    rig.step()
    second = rig.ask(4, 5, "a")
    rig.tiers.forget("a")
    rig.steps_until(first)
    assert rig.freed == []
    rig.steps_until(second)
    assert rig.freed == ["a"]
    assert rig.disk.reads == ["a"]
    assert not rig.slots.resident
    assert rig.loader.bytes == 0
    rig.assert_empty()


def test_forgetting_what_is_unknown_is_harmless() -> None:
    rig = Rig()
    rig.tiers.forget("never seen")
    assert not rig.tiers._leaving


def test_pins_keep_an_adapter_and_leave_a_slot_for_others() -> None:
    rig = Rig(resident=2, host_bytes=100)
    rig.tiers.pin("a")
    for name in "abcd":
        rig.steps_until(rig.ask(4, 2, name))
    assert "a" in rig.slots
    assert "a" in rig.loader.adapters
    with pytest.raises(UsageError, match="cannot pin b"):
        rig.tiers.pin("b")
    rig.tiers.pin("a")
    rig.tiers.unpin("a")
    for name in "bcd":
        rig.steps_until(rig.ask(4, 2, name))
    assert "a" not in rig.slots
    rig.tiers.pin("b")


def test_an_adapter_that_lost_its_slot_while_a_request_waited_is_read_again() -> None:
    rig = Rig(resident=1, rows=1, host_bytes=1)
    rig.steps_until(rig.ask(4, Classify(), "a"))
    long = rig.ask(4, 5, "b", share="s")
    waits = rig.ask(4, 2, "a", share="s")
    rig.steps_until(long)
    rig.steps_until(waits)
    assert rig.disk.reads == ["a", "b", "a"]
    rig.assert_empty()
