"""Rows that may say only what a grammar allows, beside rows that may say anything: no library, a list of texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapterhub.engine.request import Request, Row, Sampling, TokenEvent
from adapterhub.engine.sampler import sample
from adapterhub.engine.scheduler import Limits
from adapterhub.errors import InvalidRequest
from tests.tiny import make_tiny_base

from .support import Asked, assert_free, finish, make_engine

END, VOCABULARY = 2, 259
PROMPTS = [[5, 6, 7, 8, 9], [40, 41], [100, 90, 80, 70, 60, 50, 40, 30, 20], [7] * 30]
SAID = ((60, 61, 62), (60, 61), (70,), (80, 81, 82, 83, 84, 85, 86, 87))


class OneOf:
    """A grammar of some token sequences; counts how often it was begun."""

    def __init__(self, *said: tuple[int, ...], fail_after: int = 10**9) -> None:
        self.said, self.fail_after, self.begun = said, fail_after, 0

    def start(self) -> Place:
        self.begun += 1
        return Place(self)


class Place:
    def __init__(self, grammar: OneOf) -> None:
        self.grammar, self.taken = grammar, list[int]()

    def allowed(self) -> Tensor:
        """What may come next, looked up anew among all sequences."""
        if len(self.taken) >= self.grammar.fail_after:
            raise InvalidRequest("the grammar gave up")
        size, mask = len(self.taken), torch.zeros(VOCABULARY, dtype=torch.bool)
        for each in self.grammar.said:
            if list(each[:size]) == self.taken:
                mask[each[size] if len(each) > size else END] = True
        return mask

    def take(self, token: int) -> None:
        assert bool(self.allowed()[token])
        self.taken.append(token)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "llama")


def constrained(prompt: list[int], grammar: OneOf | None, **options: Any) -> Asked:
    chosen = {"max_tokens": 20, "stop_ids": frozenset({END}), "grammar": grammar, **options}
    return Asked(prompt, ask=Sampling(**{"temperature": 0.0, **chosen}))


def test_rows_with_and_without_a_grammar_share_batches(base: Path) -> None:
    free = [constrained(prompt, None, ignore_eos=True) for prompt in PROMPTS]
    for each in free:
        finish(make_engine(base, "llama"), each)
    engine, grammar = make_engine(base, "llama"), OneOf(*SAID)
    again = [constrained(prompt, None, ignore_eos=True) for prompt in PROMPTS]
    bound = [constrained(prompt, grammar) for prompt in PROMPTS]
    finish(engine, *(each for pair in zip(again, bound, strict=True) for each in pair))
    assert [each.tokens for each in again] == [each.tokens for each in free]
    for each in bound:
        assert tuple(each.tokens[:-1]) in SAID
        assert each.tokens[-1] == END
        assert each.events[-1].finish == "stop"
    assert grammar.begun == len(bound)
    assert_free(engine)


def test_the_greedy_answer_is_the_likeliest_allowed_one_at_every_step(base: Path) -> None:
    grammar = OneOf(*((a, b) for a in range(50, 90) for b in range(100, 140)))
    engine = make_engine(base, "llama")
    row = constrained(PROMPTS[0], grammar, logprobs=3)
    finish(engine, row)
    first, second, last = row.events
    text = list(PROMPTS[0])
    for event, choice in ((first, range(50, 90)), (second, range(100, 140)), (last, [END])):
        plain = constrained(text, None, max_tokens=1, logprobs=VOCABULARY)
        finish(engine, plain)
        scores = {token: score for token, score in plain.events[0].top if token in choice}
        mass = math.log(sum(map(math.exp, scores.values())))
        assert event.token == max(scores, key=scores.__getitem__)
        # What may not be said is ruled out before: what is left adds up to one.
        assert event.logprob == pytest.approx(scores[event.token] - mass, abs=1e-4)
        text.append(event.token)
    assert last.logprob == 0.0


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"min_tokens": 9}])
def test_the_end_of_the_grammar_is_the_end(base: Path, options: dict[str, Any]) -> None:
    row = constrained(PROMPTS[0], OneOf((60, 61)), **options)
    finish(make_engine(base, "llama"), row)
    assert row.tokens == [60, 61, END]
    assert row.events[-1].finish == "stop"


def test_min_tokens_keeps_it_from_ending_early() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, END] = 9.0
    for least, token in ((0, END), (1, 60)):
        ask = Sampling(9, least, 0.0, stop_ids=frozenset({END}), grammar=OneOf((), (60,)))
        (event,) = sample(logits, (Row(Request((1,), lambda _: None, ask), -1),))
        assert isinstance(event, TokenEvent)
        assert event.token == token


def test_min_tokens_of_a_row_that_nothing_ends_bars_nothing() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, END] = 9.0
    (event,) = sample(logits, (Row(Request((1,), lambda _: None, Sampling(9, 3, 0.0)), -1),))
    assert isinstance(event, TokenEvent)
    assert event.token == END


def test_max_tokens_cuts_it(base: Path) -> None:
    row = constrained(PROMPTS[0], OneOf(SAID[3]), max_tokens=4)
    finish(make_engine(base, "llama"), row)
    assert row.tokens == list(SAID[3][:4])
    assert row.events[-1].finish == "length"


@pytest.mark.parametrize("after", [0, 2])
def test_a_grammar_that_gives_up_costs_its_own_row_alone(base: Path, after: int) -> None:
    engine = make_engine(base, "llama")
    broken = constrained(PROMPTS[0], OneOf(SAID[3], fail_after=after))
    beside = [constrained(PROMPTS[1], OneOf(SAID[3])), constrained(PROMPTS[2], None, ignore_eos=True)]
    finish(engine, broken, *beside)
    assert isinstance(broken.error, InvalidRequest)
    assert len(broken.events) == after + 1
    assert beside[0].tokens == [*SAID[3], END]
    assert len(beside[1].tokens) == 20
    assert_free(engine)


def test_chunks_prefixes_and_waiting_change_nothing(base: Path) -> None:
    """Prompts in pieces, beginnings that are known, and rows that wait for room and are seated later."""
    grammar = OneOf(*((a, b, c) for a in range(50, 70) for b in range(70, 90) for c in range(90, 110)))
    prompts = [[9] * 40 + prompt for prompt in PROMPTS]
    roomy = [constrained(prompt, grammar, seed=3, temperature=0.9) for prompt in prompts]
    for each in roomy:
        finish(make_engine(base, "llama", prefix_bytes=0), each)
    engine = make_engine(base, "llama", limits=Limits(rows=2, step_tokens=16, chunk_tokens=8, cache_tokens=256))
    grammar.begun = 0
    for _ in range(2):
        tight = [constrained(prompt, grammar, seed=3, temperature=0.9) for prompt in prompts]
        finish(engine, *tight)
        assert [each.tokens for each in tight] == [each.tokens for each in roomy]
    assert grammar.begun == 2 * len(prompts)
    assert engine.prefixes.hits > 0
    assert_free(engine)


def test_a_cancelled_row_leaves_nothing(base: Path) -> None:
    engine = make_engine(base, "llama")
    gone, stays = (constrained(prompt, OneOf(SAID[3])) for prompt in PROMPTS[:2])
    for each in (gone, stays):
        engine.add(each.request)
    for _ in range(3):
        engine.step()
    gone.request.cancelled = True
    finish(engine)
    assert len(gone.tokens) <= 3
    assert stays.tokens == [*SAID[3], END]
    assert_free(engine)


def test_a_seed_gives_the_same_answer_again(base: Path) -> None:
    grammar = OneOf(*((a, b) for a in range(50, 90) for b in range(100, 140)))

    def say(seed: int) -> list[int]:
        row = constrained(PROMPTS[0], grammar, seed=seed, temperature=2.0, top_k=30, top_p=0.95)
        finish(make_engine(base, "llama"), row)
        return row.tokens

    assert say(1) == say(1)
    assert len({tuple(say(seed)) for seed in range(6)}) > 1
