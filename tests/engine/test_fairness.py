"""Fairness: no flood, of requests, prompts or rows, keeps another share waiting for long."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.engine.plan import Plan
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


def beside(rig: Rig, owner: str, plan: Plan) -> int:
    """Tokens of the others in a step."""
    rows = sum(row.request.owner != owner for row in plan.decode)
    return rows + sum(len(span.tokens) for span in plan.prefill if span.row.request.owner != owner)


@pytest.mark.parametrize("tasks", [1, 12])
def test_a_flood_of_one_owner_adds_little_to_the_steps_of_another(tasks: int) -> None:
    """However many tasks it asks: each is a share, and all are its own."""
    rig = Rig(rows=16, chunk_tokens=32)
    for number in range(200):
        rig.ask(20, 50, share=f"task{number % tasks}/flood", owner="flood")
    for _ in range(5):
        rig.step()
    assert len(rig.plans[-1].decode) >= 8
    quiet = rig.ask(20, 20, share="task0/quiet", owner="quiet")
    # A row, and the first token, at once; then half of a step's own cost, of 8 and a token, for the others.
    assert rig.steps_until(quiet) == 20
    during = [beside(rig, "quiet", plan) for plan in rig.plans[-20:]]
    assert during[0] <= 20
    assert 19 * 4 <= sum(during[1:]) <= 19 * 4.5 + 1
    rig.step()
    assert len(rig.plans[-1].decode) >= 8


def test_rows_of_a_bounded_owner_take_turns() -> None:
    rig = Rig(rows=8)
    flood = [rig.ask(2, 40, share="a", owner="flood") for _ in range(8)]
    rig.step()
    rig.ask(2, 200, share="b", owner="quiet")
    for _ in range(21):
        rig.step()
    said = [len(row.output) for row in rig.scheduler.running if row.request in flood]
    assert len(said) == 8
    assert max(said) - min(said) <= 1
    assert min(said) >= 10


def test_what_cannot_be_cut_runs_beside_another_owner() -> None:
    rig = Rig(chunk_tokens=128)
    rig.ask(2, 300, share="b", owner="quiet")
    rig.step()
    flood = [rig.ask(90, Classify(), "a", share="a", owner="flood") for _ in range(4)]
    while not all(each in rig.done for each in flood):
        rig.step()
        assert len(rig.plans) < 100
    assert len(rig.plans) > 2 * 90 / 4.5


def test_owners_who_only_wait_for_an_adapter_slow_nobody() -> None:
    rig = Rig(rows=8)
    for _ in range(8):
        rig.ask(2, 40, share="a", owner="flood")
    rig.step()
    rig.disk.gate.clear()
    rig.ask(2, 4, "cold", share="b", owner="quiet")
    assert len(rig.step(settled=False).decode) == 8
    rig.disk.gate.set()


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(1, 90), st.integers(0, 12)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=40)
def test_whatever_owners_ask_is_answered(asked: list[tuple[str, str, int, int]], rows: int) -> None:
    rig = Rig(rows=rows, step_tokens=64, chunk_tokens=16, cache_tokens=512)
    requests = [
        rig.ask(size, more or Embed(), share=f"{task}/{owner}", owner=owner) for owner, task, size, more in asked
    ]
    rig.run()
    assert sorted(each.id for each in rig.done) == [each.id for each in requests]
    rig.assert_empty()


def test_rows_of_a_bounded_owner_do_not_keep_its_prompts_out() -> None:
    rig = Rig(rows=16)
    for _ in range(10):
        rig.ask(2, 400, share="a/flood", owner="flood")
    rig.step()
    rig.ask(2, 400, share="b/quiet", owner="quiet")
    rig.step()
    asked = [rig.ask(30, ask, share="a/flood", owner="flood") for ask in (Embed(), 1)]
    for each in asked:
        assert rig.steps_until(each) <= 30


def test_no_step_is_empty_for_the_sake_of_one_who_cannot_run() -> None:
    rig = Rig(cache_tokens=128)
    talks = rig.ask(4, 60, share="a", owner="flood")
    rig.step()
    waits = rig.ask(4, 2, share="b", owner="quiet")  # the cache is full: it runs once the other is done
    rig.ask(90, Classify(), "labels", share="a", owner="flood")
    while waits not in rig.done:
        plan = rig.step()
        assert plan.decode or plan.prefill
    assert rig.done.index(talks) < rig.done.index(waits)
