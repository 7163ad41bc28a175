"""What a load asks: the same from the same seed, models in their shares, prompts of about the length wanted."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.bench.workload import Popularity, Workload, arrivals

MODELS = ("a", "b", "c", "d")


@given(st.integers(), st.sampled_from(Popularity), st.integers(1, 200), st.integers(1, 9))
def test_shares_lengths_and_seeds(seed: int, popularity: Popularity, words: int, count: int) -> None:
    workload = Workload(tuple(f"m{i}" for i in range(count)), popularity, prompt_words=words, seed=seed)
    assert sum(workload.shares()) == pytest.approx(1)
    assert workload.shares() == sorted(workload.shares(), reverse=True)
    found = list(islice(workload.asks(), 20))
    assert found == list(islice(workload.asks(), 20))
    lengths = [len(ask.body["prompt"].split()) for ask in found]
    assert all(max(1, 0.75 * words - 1) <= length <= 1.25 * words + 1 for length in lengths)


def test_models_come_in_their_shares() -> None:
    def counts(popularity: Popularity) -> Counter[str]:
        return Counter(ask.model for ask in islice(Workload(MODELS, popularity, prompt_words=1).asks(), 5000))

    assert counts(Popularity.ONE) == {"a": 5000}
    for popularity, shares in ((Popularity.UNIFORM, (1, 1, 1, 1)), (Popularity.ZIPF, (1, 1 / 2, 1 / 3, 1 / 4))):
        found = counts(popularity)
        for model, share in zip(MODELS, shares, strict=True):
            assert found[model] / 5000 == pytest.approx(share / sum(shares), abs=0.03)


def test_another_seed_asks_other_prompts() -> None:
    prompts = [[ask.body["prompt"] for ask in islice(Workload(("a",), seed=seed).asks(), 50)] for seed in (0, 1)]
    assert len({*prompts[0], *prompts[1]}) == 100


def test_bodies() -> None:
    (ask,) = islice(Workload(("a",), max_tokens=7).asks(), 1)
    assert (ask.path, ask.body["max_tokens"], ask.body["stream"]) == ("completions", 7, True)
    assert "ignore_eos" not in ask.body
    (chat,) = islice(Workload(("a",), chat=True, ignore_eos=True).asks(), 1)
    assert chat.path == "chat/completions"
    assert chat.body["messages"] == [{"role": "user", "content": ask.body["prompt"]}]
    assert chat.body["ignore_eos"] is True


@pytest.mark.parametrize("rate", [0.5, 8.0])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    times = list(islice(arrivals(rate, 0), 4000))
    assert times == list(islice(arrivals(rate, 0), 4000))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert min(gaps) >= 0
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / rate, rel=0.06)
    # An exponential distribution's deviation is its mean.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)
