"""Chunked prefill on real models: the answers of whole prompts, and no row that decodes ever waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.engine.request import Embed, TokenEvent
from adapterhub.engine.scheduler import Limits
from tests.adapters import load_peft, load_plain, make_adapter
from tests.tiny import make_tiny_base

from .stand_ins import settle
from .support import DECODERS, Asked, adapter_of, assert_free, finish, make_engine

LONG = [3 + (7 * i * i + i) % 250 for i in range(150)]
SHORT = [9, 8, 7, 6]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(root / family, family) for family in DECODERS}


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("family", DECODERS)
def test_chunks_give_the_tokens_of_a_whole_prompt(
    family: str, reference: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = adapter_of(make_adapter(bases[family], tmp_path / "a", family), family, labels=False)

    def answers(limits: Limits) -> list[list[int]]:
        engine = make_engine(bases[family], family, limits=limits, reference=reference)
        asked = [Asked(LONG, adapter, max_tokens=8), Asked(SHORT, max_tokens=20), Asked(LONG[::-1], max_tokens=8)]
        finish(engine, *asked)
        assert_free(engine)
        return [item.tokens for item in asked]

    whole = answers(Limits(step_tokens=1000, chunk_tokens=1000))
    assert answers(Limits(step_tokens=37, chunk_tokens=11)) == whole
    assert answers(Limits(step_tokens=1, chunk_tokens=1)) == whole


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
def test_every_decoding_row_says_a_token_in_every_step_beside_a_long_prompt(
    reference: bool, bases: dict[str, Path]
) -> None:
    engine = make_engine(bases["llama"], "llama", limits=Limits(step_tokens=512, chunk_tokens=8), reference=reference)
    talking = [Asked([*SHORT, i], max_tokens=60) for i in range(4)]
    for item in talking:
        engine.add(item.request)
    engine.step()
    long = Asked(LONG, max_tokens=3)
    engine.add(long.request)
    steps = 0
    while not long.events:
        before = [len(item.events) for item in talking]
        engine.step()
        steps += 1
        assert [len(item.events) for item in talking] == [count + 1 for count in before]
    assert steps == -(-len(LONG) // 8)
    finish(engine)
    assert all(isinstance(event, TokenEvent) for item in (*talking, long) for event in item.events)


def test_classification_in_chunks_equals_peft(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = make_adapter(bases["llama"], tmp_path / "c", "llama", labels=4)
    adapter = adapter_of(folder, "llama", labels=True)
    engine = make_engine(bases["llama"], "llama", limits=Limits(step_tokens=64, chunk_tokens=16))
    beside, beyond = Asked(LONG[:50], adapter), Asked(LONG, adapter)
    talks = Asked(SHORT, max_tokens=30)
    engine.add(talks.request)
    engine.step()
    engine.add(beside.request)
    settle(engine.loader)
    for _ in range(3):
        engine.step()
    assert not beside.events
    finish(engine)
    finish(engine, beyond)
    model = load_peft(bases["llama"], folder, 4)
    for item in (beside, beyond):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([item.request.tokens])).logits[0]
        torch.testing.assert_close(item.logits, logits, rtol=1e-4, atol=1e-4)
    assert_free(engine)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_embeddings_in_chunks_equal_the_whole(pooling: str, bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama", dtype=torch.float64, limits=Limits(step_tokens=33))
    item = Asked(LONG, None, Embed(pooling))
    finish(engine, item)
    with torch.inference_mode():
        model = load_plain(bases["llama"], None, torch.float64).model
        states = model(input_ids=torch.tensor([LONG])).last_hidden_state[0]
    expected = {"mean": states.mean(dim=0), "last": states[-1], "cls": states[0]}[pooling]
    torch.testing.assert_close(item.vector, expected, rtol=0, atol=1e-9)
