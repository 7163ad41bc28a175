"""Fairness: no flood, of requests, prompts or rows, keeps another share waiting for long."""

from __future__ import annotations

import pytest

from adapterhub.engine.request import Classify, Embed

from .rig import Rig


@pytest.mark.parametrize("adapters", [False, True])
def test_a_flood_of_two_hundred_holds_a_quiet_one_out_for_a_few_steps(adapters: bool) -> None:
    rig = Rig(rows=8, resident=4)
    for number in range(200):
        rig.ask(20, 50, f"flood{number % 3}" if adapters else None, share="flood")
    for _ in range(5):
        rig.step()
    quiet = rig.ask(20, 4, "quiet", share="quiet")
    assert rig.steps_until(quiet) <= 6


def test_a_flood_of_prompts_holds_a_quiet_one_out_for_a_step() -> None:
    rig = Rig(step_tokens=64)
    for _ in range(200):
        rig.ask(60, Embed(), share="flood")
    rig.step()
    quiet = rig.ask(60, Embed(), share="quiet")
    assert rig.steps_until(quiet) <= 2


def test_a_long_prompt_does_not_hold_out_another_share() -> None:
    rig = Rig(step_tokens=64, chunk_tokens=16)
    rig.ask(4, 900, share="talks")
    rig.step()
    rig.ask(2000, 1, share="long")
    rig.step()
    quiet = rig.ask(16, 1, share="quiet")
    assert rig.steps_until(quiet) <= 2


def test_a_long_classification_is_not_starved_by_short_ones() -> None:
    rig = Rig(step_tokens=100, chunk_tokens=20)
    rig.ask(4, 400, share="talks")
    rig.step()
    long = rig.ask(90, Classify(), "a", share="long")
    for _ in range(12):
        for _ in range(2):
            rig.ask(10, Embed(), share="short")
        rig.step()
        if long in rig.done:
            break
    assert long in rig.done


def test_spare_rows_are_for_shares_that_run_none() -> None:
    rig = Rig(rows=4)
    for _ in range(10):
        rig.ask(4, 100, share="flood")
    rig.step()
    assert len(rig.scheduler.running) == 4
    one, two = rig.ask(4, 100, share="one"), rig.ask(4, 100, share="two")
    rig.step()
    running = [row.request for row in rig.scheduler.running]
    assert one in running
    assert two not in running
    assert len(running) == 5


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tokens_are_shared_out_by_weight(weight: float) -> None:
    rig = Rig(step_tokens=30, queue=10_000)
    for _ in range(300):
        rig.ask(10, Embed(), share="heavy", weight=weight)
        rig.ask(10, Embed(), share="light")
    for _ in range(40):
        rig.step()
    served = [request.share for request in rig.done]
    assert len(served) == 120
    assert served.count("heavy") / served.count("light") == pytest.approx(weight, rel=0.1)


def test_output_counts_twice_as_much_as_input() -> None:
    rig = Rig(rows=64, queue=10_000)
    rig.ask(10, 10, share="s")
    rig.ask(1, 10_000, share="other")
    for _ in range(10):
        rig.step()
    rig.ask(1, 1, share="s2")
    assert rig.scheduler.counters["other"] == 1 + 2 * 10
