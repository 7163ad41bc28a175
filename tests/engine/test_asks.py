"""Scores and embeddings against the plain model, in float64, where equality is to 1e-9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.engine.request import Adapter, Embed, Score
from adapterhub.engine.scheduler import Limits
from adapterhub.errors import CorruptAdapter
from adapterhub.lora.weights import LoraPair, LoraWeights
from tests.adapters import load_peft, load_plain, make_adapter
from tests.tiny import ENCODERS, make_tiny_base

from .support import ALL, DECODERS, Asked, adapter_of, assert_free, finish, make_engine

PROMPTS = [[5, 6, 7, 8, 9], [40], [100, 90, 80, 70, 60, 50, 40, 30, 20], [7, 11] * 40]
CONTINUATIONS = ((4,), (5, 6, 7), (200,), (1, 2), (3,) * 20, (5, 6, 8))
WIDE = torch.float64


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(root / family, family) for family in ALL}


def plain_scores(model: Any, prompt: list[int], continuations: tuple[tuple[int, ...], ...]) -> list[list[float]]:
    """Each continuation in a forward of its own."""
    found = []
    for continuation in continuations:
        ids = [*prompt, *continuation]
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append([float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation)])
    return found


def assert_scores(item: Asked, model: Any) -> None:
    ask = item.request.ask
    assert isinstance(ask, Score)
    expected = plain_scores(model, list(item.request.tokens), ask.continuations)
    assert [len(each) for each in item.scores] == [len(each) for each in ask.continuations]
    for found, right in zip(item.scores, expected, strict=True):
        assert found == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize("limits", [Limits(), Limits(step_tokens=6, chunk_tokens=3)], ids=["at once", "in pieces"])
@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("family", DECODERS)
def test_scores_equal_the_plain_model(
    family: str, reference: bool, limits: Limits, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = make_adapter(bases[family], tmp_path / "a", family)
    adapter = adapter_of(folder, family, labels=False, dtype=WIDE)
    engine = make_engine(bases[family], family, dtype=WIDE, limits=limits, reference=reference)
    asked = [Asked(prompt, each, Score(CONTINUATIONS)) for prompt in PROMPTS for each in (None, adapter)]
    talks = Asked(PROMPTS[0], max_tokens=40)
    finish(engine, talks, *asked)
    models = load_plain(bases[family], None, WIDE), load_peft(bases[family], folder, None, WIDE)
    for item in asked:
        assert_scores(item, models[item.request.adapter is not None])
    assert len(talks.tokens) == 40
    assert_free(engine)


def test_scores_of_the_longest_continuation_that_fits(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama", dtype=WIDE)
    item = Asked(PROMPTS[0], None, Score((tuple(range(3, 250)) + tuple(range(3, 250)),)))
    finish(engine, item)
    assert_scores(item, load_plain(bases["llama"], None, WIDE))


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("family", ALL)
def test_embeddings_equal_the_plain_models_states(
    family: str, pooling: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    labels = 3 if family in ENCODERS else None
    folder = make_adapter(bases[family], tmp_path / "a", family, labels=labels)
    adapter = adapter_of(folder, family, labels=labels is not None, dtype=WIDE)
    engine = make_engine(bases[family], family, dtype=WIDE)
    asked = [Asked(prompt, each, Embed(pooling)) for prompt in PROMPTS for each in (None, adapter)]
    finish(engine, *asked)
    plain = load_plain(bases[family], labels, WIDE)
    tuned = load_peft(bases[family], folder, labels, WIDE).merge_and_unload()
    vectors = []
    for item in asked:
        model = tuned if item.request.adapter else plain
        with torch.inference_mode():
            states = model.base_model(input_ids=torch.tensor([item.request.tokens])).last_hidden_state[0]
        expected = {"mean": states.mean(dim=0), "last": states[-1], "cls": states[0]}[pooling]
        torch.testing.assert_close(item.vector, expected, rtol=0, atol=1e-9)
        vectors.append(tuple(item.vector.tolist()))
    assert len(set(vectors)) == len(vectors)
    assert_free(engine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_are_float32_or_wider(dtype: torch.dtype, bases: dict[str, Path]) -> None:
    item = Asked(PROMPTS[0], None, Embed())
    finish(make_engine(bases["llama"], "llama", dtype=dtype), item)
    assert item.vector.dtype == torch.float32


@pytest.mark.parametrize("limits", [Limits(), Limits(step_tokens=9, chunk_tokens=4)], ids=["at once", "in pieces"])
def test_what_is_not_finite_fails_its_own_row(limits: Limits, bases: dict[str, Path]) -> None:
    huge = LoraWeights(
        {"layers.0.mlp.down_proj": LoraPair(torch.full((2, 48), 1e30), torch.full((32, 2), 1e30), 1.0)}, {}
    )
    bad = Adapter("sha256:huge", lambda: huge)
    engine = make_engine(bases["llama"], "llama", limits=limits)
    asks = (Score(CONTINUATIONS), Embed("mean"), Embed("last"))
    broken = [Asked(PROMPTS[2], bad, ask) for ask in asks]
    fine = [Asked(PROMPTS[2], None, ask) for ask in asks]
    finish(engine, *broken, *fine)
    for item in broken:
        (event,) = item.events
        assert isinstance(item.error, CorruptAdapter), event
        assert "sha256:huge" in str(item.error)
    assert all(not item.error for item in fine)
    assert_free(engine)
    assert len(engine.prefixes) == 0
