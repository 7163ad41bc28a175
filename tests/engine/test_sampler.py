"""From logits to tokens: the rules of sampling, against what they say in plain words."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from adapterhub.engine.request import FailedEvent, Request, Row, Sampling, TokenEvent
from adapterhub.engine.sampler import sample

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5])


def row(seed: int = 0, **options: object) -> Row:
    sampling = Sampling(max_tokens=9, **options)  # type: ignore[arg-type]
    return Row(Request((1,), lambda event: None, sampling), -1, generator=torch.Generator().manual_seed(seed))


def draws(count: int = 3000, **options: object) -> Counter[int]:
    one = row(**options)
    found: Counter[int] = Counter()
    for _ in range(count):
        (event,) = sample(LOGITS[None], (one,))
        assert isinstance(event, TokenEvent)
        found[event.token] += 1
    return found


def test_frequencies_follow_the_softmax_at_the_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(LOGITS / temperature, dim=-1)
        found = draws(temperature=temperature)
        for token, probability in enumerate(expected.tolist()):
            assert found[token] / 3000 == pytest.approx(probability, abs=0.04)


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert set(draws(300, top_k=2)) == {1, 2}
    # Sorted, the probabilities are .64 .24 .09 .05 .01: the mass before the third is .88.
    assert set(draws(300, top_p=0.5)) == {1}
    assert set(draws(600, top_p=0.8)) == {1, 2}
    assert set(draws(600, top_p=0.9)) == {0, 1, 2}


@pytest.mark.parametrize("top_p", [5e-324, 1e-30, 1e-8])
def test_the_smallest_top_p_leaves_the_likeliest(top_p: float) -> None:
    assert set(draws(20, top_p=top_p)) == {1}


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-300])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    assert set(draws(20, temperature=temperature)) == {1}


def test_logprobs_are_of_the_untouched_distribution() -> None:
    (event,) = sample(LOGITS[None], (row(temperature=0.3, top_k=1, logprobs=2),))
    assert isinstance(event, TokenEvent)
    scores = torch.log_softmax(LOGITS, dim=-1)
    assert event.logprob == pytest.approx(float(scores[1]))
    assert [token for token, _ in event.top] == [1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_fails_alone(bad: float) -> None:
    logits = torch.stack([LOGITS, LOGITS.clone()])
    logits[1, 3] = bad
    fine, broken = sample(logits, (row(temperature=0.0), row(temperature=0.0)))
    assert isinstance(fine, TokenEvent)
    assert fine.token == 1
    assert isinstance(broken, FailedEvent)


def test_logits_whose_sum_overflows_are_finite_all_the_same() -> None:
    logits = torch.full((1, 8), 3e38)
    logits[0, 5] = 3.2e38
    (event,) = sample(logits, (row(temperature=0.0),))
    assert isinstance(event, TokenEvent)
    assert event.token == 5
