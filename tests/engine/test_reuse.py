"""The prefix cache on real models: the same answers for less work, and never those of another adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.engine.engine import Engine
from adapterhub.engine.prefix_cache import CHUNK
from adapterhub.engine.request import Adapter, Score
from adapterhub.engine.scheduler import Limits
from adapterhub.lora.weights import LoraPair, LoraWeights
from tests.adapters import load_peft, make_adapter
from tests.tiny import make_tiny_base

from .support import DECODERS, Asked, adapter_of, assert_free, finish, make_engine
from .test_engine import greedy

INSTRUCTION = [3 + (5 * i * i + i) % 250 for i in range(3 * CHUNK + 4)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(root / family, family) for family in DECODERS}


def saved(engine: Engine) -> tuple[int, int]:
    stats = engine.stats()
    return int(stats["prefix_hits"]), int(stats["prefix_tokens_reused"])


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_repeated_instruction_gives_the_same_tokens_for_less(
    family: str, reference: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = adapter_of(make_adapter(bases[family], tmp_path / "a", family), family, labels=False)
    questions = [[40 + i, 9, 9 + i] for i in range(4)]
    asked = [Asked([*INSTRUCTION, *question], adapter, max_tokens=10) for question in questions]
    fresh = [Asked(item.request.tokens, adapter, max_tokens=10) for item in asked]
    engine = make_engine(bases[family], family, reference=reference)
    finish(engine, asked[0])
    finish(engine, *asked[1:])
    assert saved(engine) == (3, 3 * 3 * CHUNK)
    finish(make_engine(bases[family], family, prefix_bytes=0), *fresh)
    assert [item.tokens for item in asked] == [item.tokens for item in fresh]
    assert_free(engine)


def test_two_adapters_never_share_a_prefix(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    folders = [make_adapter(base, tmp_path / f"a{i}", "llama", seed=i) for i in range(2)]
    adapters = [adapter_of(folder, "llama", labels=False) for folder in folders]
    engine = make_engine(base, "llama")
    first, second = (Asked(INSTRUCTION, adapter, max_tokens=8) for adapter in adapters)
    bare = Asked(INSTRUCTION, max_tokens=8)
    for item in (first, second, bare):
        finish(engine, item)
    assert saved(engine) == (0, 0)
    for item, folder in ((first, folders[0]), (second, folders[1])):
        assert item.tokens == greedy(load_peft(base, folder, None), INSTRUCTION, 8)
    assert first.tokens != second.tokens != bare.tokens
    again = Asked(INSTRUCTION, adapters[1], max_tokens=8)
    finish(engine, again)
    assert again.tokens == second.tokens
    assert saved(engine) == (1, 3 * CHUNK)


def test_new_weights_under_an_old_name_meet_no_stale_prefix(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    engine = make_engine(base, "llama")
    answers = []
    for version in range(2):
        folder = make_adapter(base, tmp_path / f"v{version}" / "same-name", "llama", seed=version)
        old = adapter_of(folder, "llama", labels=False)
        item = Asked(INSTRUCTION, Adapter(f"sha256:{version}", old.read), share="same-name", max_tokens=8)
        finish(engine, item)
        assert item.tokens == greedy(load_peft(base, folder, None), INSTRUCTION, 8)
        answers.append(item.tokens)
    assert answers[0] != answers[1]


def test_the_next_turn_of_a_chat_begins_where_the_last_one_ended(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama")
    first = Asked(INSTRUCTION, max_tokens=40)
    finish(engine, first)
    turn = [*INSTRUCTION, *first.tokens, 7, 8]
    second, fresh = Asked(turn, max_tokens=8), Asked(turn, max_tokens=8)
    finish(engine, second)
    whole = len(INSTRUCTION) + 39
    assert saved(engine) == (1, whole - whole % CHUNK)
    finish(make_engine(bases["llama"], "llama"), fresh)
    assert second.tokens == fresh.tokens


def test_requests_beside_each_other_reuse_what_the_first_one_ran(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama", limits=Limits(step_tokens=len(INSTRUCTION)))
    asked = [Asked([*INSTRUCTION[:-1], 5 + i], max_tokens=3) for i in range(4)]
    finish(engine, *asked)
    assert saved(engine)[0] == 3


def test_scores_give_and_take_prefixes(bases: dict[str, Path]) -> None:
    ask = Score(((5,), (6, 7, 8)))
    engine = make_engine(bases["llama"], "llama", dtype=torch.float64)
    first, again = Asked(INSTRUCTION, None, ask), Asked(INSTRUCTION, None, ask)
    speaks = Asked(INSTRUCTION, max_tokens=4)
    for item in (first, again, speaks):
        finish(engine, item)
    assert saved(engine) == (2, 2 * 3 * CHUNK)
    for one, other in zip(first.scores, again.scores, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    assert_free(engine)


def test_a_broken_adapter_leaves_nothing_in_the_cache(bases: dict[str, Path]) -> None:
    pair = LoraPair(torch.full((2, 48), 1e30), torch.full((32, 2), 1e30), 1.0)
    huge = LoraWeights({"layers.0.mlp.down_proj": pair}, {})
    engine = make_engine(bases["llama"], "llama")
    item = Asked(INSTRUCTION, Adapter("sha256:huge", lambda: huge), max_tokens=4)
    finish(engine, item)
    assert item.error is not None
    assert engine.stats()["prefix_cache_bytes"] == 0


def test_the_byte_budget_holds(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama", prefix_bytes=100_000)
    for number in range(30):
        finish(engine, Asked([number + 3] * 80, max_tokens=2))
        assert 0 < engine.stats()["prefix_cache_bytes"] <= 100_000
