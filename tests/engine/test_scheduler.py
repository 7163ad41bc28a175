"""Who runs when: budgets, chunks, waiting and passing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.engine.plan import Plan, Span
from adapterhub.engine.request import Classify, Embed, FailedEvent, Request, Sampling, Score
from adapterhub.errors import Overloaded

from .rig import Rig
from .stand_ins import PATIENCE, settle


def spans_of(plans: list[Plan], request: Request) -> list[Span]:
    return [span for plan in plans for span in plan.prefill if span.row.request is request]


def sizes(plan: Plan) -> list[int]:
    return [len(span.tokens) for span in plan.prefill]


# Budgets and chunks


def test_prompts_start_together_within_the_budget() -> None:
    rig = Rig(step_tokens=100)
    for _ in range(3):
        rig.ask(40, 2)
    assert sizes(rig.step()) == [40, 40, 20]
    assert len(rig.step().decode) == 2


def test_a_prompt_is_cut_where_the_budget_ends_and_goes_on_there() -> None:
    rig = Rig(step_tokens=100)
    long = rig.ask(250, 1)
    rig.run()
    spans = spans_of(rig.plans, long)
    assert [(s.past, len(s.tokens), s.keeps, s.last) for s in spans] == [
        (0, 100, True, False),
        (100, 100, True, False),
        (200, 50, True, True),
    ]
    assert sum((s.tokens for s in spans), ()) == long.tokens
    rig.assert_empty()


def test_a_long_prompt_never_stalls_rows_that_decode() -> None:
    rig = Rig(step_tokens=1000, chunk_tokens=16)
    talking = [rig.ask(4, 60) for _ in range(3)]
    rig.step()
    long = rig.ask(500, 1)
    while long not in rig.done:
        plan = rig.step()
        assert {row.request for row in plan.decode} >= set(talking)
        assert sum(sizes(plan)) <= 16
        assert len(rig.plans) < 50
    assert len(spans_of(rig.plans, long)) == -(-500 // 16)


def test_classification_that_fits_runs_whole_and_takes_no_place() -> None:
    rig = Rig(step_tokens=100)
    request = rig.ask(60, Classify(), "a")
    plan = rig.step()
    (span,) = plan.prefill
    assert (span.past, span.keeps, span.last, len(span.tokens)) == (0, False, True, 60)
    assert span.row.place is None
    assert rig.done == [request]
    rig.assert_empty()


def test_classification_waits_for_a_step_with_room_rather_than_being_cut() -> None:
    rig = Rig(step_tokens=100)
    rig.ask(60, Embed(), share="one")
    rig.ask(60, Embed(), share="two")
    assert sizes(rig.step()) == [60]
    assert sizes(rig.step()) == [60]


@pytest.mark.parametrize(("size", "talking", "cut"), [(120, True, True), (120, False, False), (300, False, True)])
def test_classification_longer_than_the_budget_is_chunked(size: int, talking: bool, cut: bool) -> None:
    rig = Rig(step_tokens=200, chunk_tokens=50)
    if talking:
        rig.ask(4, 400)
        rig.step()
    request = rig.ask(size, Classify(), "a")
    assert rig.steps_until(request, 10) == (-(-size // (50 if talking else 200)))
    spans = spans_of(rig.plans, request)
    assert all(span.keeps == cut for span in spans)
    assert [span.last for span in spans] == [False] * (len(spans) - 1) + [True]


def test_a_head_that_looks_at_the_first_token_gets_its_prompt_whole() -> None:
    rig = Rig(step_tokens=100, chunk_tokens=50)
    request = Request((1,) * 130, lambda event: None, Classify(), rig.disk.adapter("a", "cls"))
    rig.scheduler.add(request)
    (span,) = rig.step().prefill
    assert len(span.tokens) == 130


def test_encoders_run_whole_and_a_longer_prompt_alone() -> None:
    rig = Rig(causal=False, step_tokens=100)
    short = [rig.ask(40, Embed()) for _ in range(2)]
    long = rig.ask(150, Embed())
    last = rig.ask(10, Embed())
    assert rig.started(rig.step()) == short
    assert rig.started(rig.step()) == [long]
    assert rig.started(rig.step()) == [last]
    assert all(not span.keeps for plan in rig.plans for span in plan.prefill)


# Scores


def test_scores_share_the_prompt_and_read_each_token() -> None:
    rig = Rig(step_tokens=100)
    request = rig.ask(10, Score(((7,), (8, 9), (3, 4, 5))))
    first, rest = rig.step().prefill
    assert first.reads == ((9, 7), (9, 8), (9, 3))
    assert (first.keeps, first.last, first.branches) == (True, True, ())
    assert (rest.tokens, rest.past, rest.keeps, rest.last) == ((8, 3, 4), 10, False, False)
    assert rest.branches == (1, 2)
    assert rest.reads == ((0, 9), (1, 4), (2, 5))
    assert rig.done == [request]


def test_single_tokens_need_no_branches() -> None:
    rig = Rig()
    rig.ask(10, Score(((7,), (8,))))
    (span,) = rig.step().prefill
    assert span.reads == ((9, 7), (9, 8))
    rig.assert_empty()


def test_branches_are_split_by_whole_continuations_and_the_row_keeps_its_place() -> None:
    rig = Rig(step_tokens=20)
    continuations = tuple((1,) * size for size in (9, 9, 40, 2, 2))
    request = rig.ask(16, Score(continuations))
    rig.step()
    assert rig.cache is not None
    while request not in rig.done:
        assert rig.cache.bytes > 0
        rig.step()
    branches = [span.branches for span in spans_of(rig.plans, request)]
    assert branches == [(), (8, 8), (39,), (1, 1)]
    assert all(len(span.tokens) <= 20 or span.branches == (39,) for span in spans_of(rig.plans, request))
    rig.assert_empty()


def test_a_continuation_that_is_too_long_waits_until_it_can_run_alone() -> None:
    rig = Rig(step_tokens=20)
    scored = rig.ask(20, Score(((1,) * 31,)), share="scores")
    others = [rig.ask(15, Embed(), share=f"s{i}") for i in range(6)]
    rig.run()
    step = next(plan for plan in rig.plans if any(span.branches for span in plan.prefill))
    assert sizes(step) == [30]
    assert set(rig.done) == {scored, *others}


# Waiting, and who passes


def test_classification_passes_generations_that_wait_for_rows() -> None:
    rig = Rig(rows=1, step_tokens=100)
    rig.ask(4, 30, share="s")
    rig.step()
    blocked = rig.ask(4, 3, share="s")
    quick = rig.ask(4, Classify(), "a", share="s")
    assert rig.steps_until(quick) == 1
    assert not spans_of(rig.plans, blocked)


def test_a_small_generation_does_not_overtake_one_that_waits_for_cache() -> None:
    rig = Rig(cache_tokens=512)
    running = rig.ask(100, 20, share="x")
    rig.step()
    large = rig.ask(400, 10, share="y")
    small = rig.ask(10, 2, share="z")
    quick = rig.ask(10, Embed(), share="z")
    rig.step()
    assert quick in rig.done
    rig.steps_until(running)
    assert not spans_of(rig.plans, small)
    rig.run()
    assert rig.done.index(running) < min(rig.done.index(large), rig.done.index(small))


def test_generations_of_one_share_keep_their_order() -> None:
    rig = Rig(rows=2, step_tokens=64)
    asked = [rig.ask(size, 3, share="s") for size in (30, 60, 5, 40, 1, 20)]
    rig.run()
    starts = [request for plan in rig.plans for request in rig.started(plan)]
    assert starts == asked


def test_loading_holds_up_its_own_adapters_requests_alone() -> None:
    rig = Rig()
    rig.steps_until(rig.ask(4, Classify(), "hot"))
    rig.disk.gate.clear()
    cold = [rig.ask(4, 2, "cold", share="s"), rig.ask(4, Classify(), "cold", share="s")]
    assert rig.disk.entered.acquire(timeout=PATIENCE)
    others = [rig.ask(4, 2, "hot", share="s"), rig.ask(4, 2, None, share="s"), rig.ask(4, Classify(), "hot")]
    rig.step(settled=False)
    plan = rig.step(settled=False)
    assert {row.request for row in plan.decode} == set(others[:2])
    assert not any(spans_of(rig.plans, request) for request in cold)
    rig.disk.gate.set()
    rig.run()
    assert set(rig.done) >= {*cold, *others}


def test_waiting_for_a_slot_lets_the_base_and_resident_adapters_pass() -> None:
    rig = Rig(resident=2)
    rig.ask(4, 30, "a")
    rig.ask(4, 60, "b")
    rig.ask(4, 60, "b")
    rig.step()
    waits = rig.ask(4, 2, "c")
    rig.step()
    passing = [rig.ask(4, 2, None), rig.ask(4, 2, "b")]
    rig.step()
    assert all(spans_of(rig.plans, request) for request in passing)
    assert not spans_of(rig.plans, waits)
    rig.run()
    assert waits in rig.done


def test_busy_adapters_do_not_keep_all_slots_for_ever() -> None:
    rig = Rig(resident=2, rows=8)
    for name in "ab":  # answers end one by one, so that neither adapter is ever idle
        for count in (3, 6, 9, 12):
            rig.ask(4, count, name)
    rig.step()
    waits = rig.ask(4, 1, "c")
    for _ in range(30):  # as soon as one is answered the same adapter is asked again
        before = len(rig.done)
        rig.step()
        if waits in rig.done:
            break
        for request in rig.done[before:]:
            rig.ask(4, 12, request.digest)
    assert waits in rig.done


def test_an_error_of_reading_fails_exactly_those_who_wait_for_it() -> None:
    rig = Rig()
    rig.disk.broken.add("bad")
    bad = [rig.ask(4, 2, "bad"), rig.ask(4, Classify(), "bad")]
    good = [rig.ask(4, 2, "good"), rig.ask(4, 2)]
    rig.run()
    assert all(isinstance(rig.error(request), OSError) for request in bad)
    assert set(rig.done) == set(good)
    rig.disk.broken.clear()
    again = rig.ask(4, 2, "bad")
    rig.run()
    assert again in rig.done
    rig.assert_empty()


def test_a_request_that_cannot_start_fails_alone_and_holds_nothing() -> None:
    rig = Rig()
    bad = rig.ask(4, Sampling(3, seed=2**70), "a")
    good = rig.ask(4, 3, "a")
    rig.run()
    assert rig.error(bad) is not None
    assert rig.done == [good]
    rig.assert_empty()


@pytest.mark.parametrize("where", ["slot", "prefix"])
def test_whatever_fails_while_a_row_is_seated_frees_its_place_and_slot(where: str) -> None:
    rig = Rig(rows=1)
    failing = True

    def fail(*_: object) -> None:
        if failing:
            raise MemoryError("no room")

    if where == "slot":
        rig.slots._load = fail
    else:
        rig.scheduler._restore = fail
    bad = rig.ask(4, 3, "a")
    rig.step()
    assert isinstance(rig.error(bad), MemoryError)
    rig.assert_empty()
    failing = False
    good = rig.ask(4, Sampling(3, temperature=1.0), "a")
    rig.run()
    assert rig.done == [good]
    rig.assert_empty()


def test_the_queue_is_bounded() -> None:
    rig = Rig(queue=2)
    rig.ask(4, 2)
    rig.ask(4, 2)
    with pytest.raises(Overloaded, match="2 requests"):
        rig.ask(4, 2)
    rig.run()
    rig.assert_empty()


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 6),  # steps before it comes
            st.integers(1, 90),
            st.sampled_from(["generate", "classify", "embed", "score"]),
            st.sampled_from([None, "a", "b", "c", "d", "broken"]),
            st.sampled_from([None, "x", "y"]),
            st.sampled_from([0.5, 1.0, 4.0]),
            st.integers(0, 40),  # cancelled after so many steps; 40: never
        ),
        min_size=1,
        max_size=25,
    ),
    rows=st.integers(1, 4),
    resident=st.integers(1, 3),
    chunk=st.integers(1, 24),
    extra=st.integers(0, 40),
    host_bytes=st.sampled_from([0, 150, 1000]),
)
def test_every_request_ends_and_every_bound_holds(
    asked: list[tuple[int, int, str, str | None, str | None, float, int]],
    rows: int,
    resident: int,
    chunk: int,
    extra: int,
    host_bytes: int,
) -> None:
    rig = Rig(
        rows=rows,
        resident=resident,
        host_bytes=host_bytes,
        chunk_tokens=chunk,
        step_tokens=chunk + extra,
        cache_tokens=512,
    )
    rig.disk.broken.add("broken")
    asks = {
        "generate": Sampling(5, temperature=0.0),
        "classify": Classify(),
        "embed": Embed(),
        "score": Score(((1,), (2, 3, 4), (5,) * 30, (6, 7))),
    }
    live: list[tuple[Request, int]] = []
    given_up: list[Request] = []

    def step() -> None:
        talking = [row for row in rig.scheduler.running if row.output and not row.request.cancelled]
        plan = rig.step()
        assert list(plan.decode) == talking
        budget = chunk if talking else chunk + extra
        assert sum(sizes(plan)) <= budget or (len(plan.prefill) == 1 and len(plan.prefill[0].branches) == 1)
        placed = [row for row in {*plan.decode, *(span.row for span in plan.prefill)} if row.place]
        assert len(placed) <= rows + rig.limits.spare_rows
        assert len(rig.slots) <= resident
        for request, last in [each for each in live if each[1] <= len(rig.plans)]:
            request.cancelled = True
            given_up.append(request)
            live.remove((request, last))

    for pause, size, kind, adapter, share, weight, last in asked:
        for _ in range(pause):
            step()
        name = "a" if kind == "classify" and adapter is None else adapter
        request = rig.ask(size, asks[kind], name, share=share, weight=weight)
        live.append((request, len(rig.plans) + last if last < 40 else 10**9))
    for _ in range(600):
        if not rig.scheduler.running and not len(rig.scheduler.waiting):
            break
        step()
    for request, _ in live:
        failed = any(isinstance(event, FailedEvent) for event in rig.events[request.id])
        assert failed == (request.digest == "broken")
        assert failed != (request in rig.done)
    settle(rig.loader)
    rig.assert_empty()
    assert rig.loader.bytes <= max(host_bytes, 0)
