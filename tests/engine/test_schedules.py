"""Random schedules on a tiny model: every answer is the one the reference gives to a request that is alone.

ADAPTERHUB_SCHEDULES sets how many schedules are tried.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from adapterhub.engine.engine import Engine
from adapterhub.engine.request import (
    Adapter,
    Ask,
    Classify,
    Embed,
    EmbeddingEvent,
    LogitsEvent,
    Sampling,
    Score,
    ScoresEvent,
)
from adapterhub.engine.scheduler import Limits
from adapterhub.lora.weights import LoraPair, LoraWeights
from tests.tiny import make_tiny_base

from .support import Asked, assert_free, finish

# Beginnings in common, so that the prefix cache has something to find.
COMMON = [3 + (5 * i * i + i) % 250 for i in range(70)]
PROMPTS = ([9], [40, 41, 42], COMMON[:33], COMMON, [*COMMON[:64], 7, 7], [*COMMON[:40], 8, 9], [11] * 50)
ASKS: dict[str, Ask] = {
    "short": Sampling(3, temperature=0.0),
    "long": Sampling(14, temperature=0.0),
    "seeded": Sampling(6, temperature=0.8, top_p=0.9, seed=3),
    "classify": Classify(),
    "mean": Embed("mean"),
    "last": Embed("last"),
    "score": Score(((5,), (6, 7, 8), (9, 10), (12,) * 9)),
}
ADAPTERS = 5


@dataclass(frozen=True)
class World:
    base: Path
    adapters: tuple[Adapter, ...]

    def engine(self, **kwargs: Any) -> Engine:
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float64)
        return Engine(model, 512, **kwargs)


def adapter(number: int) -> Adapter:
    """Ranks, layers and modules differ from adapter to adapter, one is DoRA; all have heads."""
    generator = torch.Generator().manual_seed(number)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3

    kinds = {
        "self_attn.q_proj": (32, 32),
        "self_attn.v_proj": (16, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.down_proj": (32, 48),
    }
    rank = (1, 4, 4, 8, 3)[number]
    modules = {
        f"layers.{layer}.{kind}": LoraPair(draw(rank, inputs), draw(outputs, rank), 1.0)
        for layer in range(3)
        for index, (kind, (outputs, inputs)) in enumerate(kinds.items())
        if (layer + index + number) % 3
    }
    if number == ADAPTERS - 1:
        modules = {name: replace(pair, magnitude=1 + draw(pair.b.shape[0])) for name, pair in modules.items()}
    weights = LoraWeights(modules, {"score.weight": draw(3, 32)})
    return Adapter(f"sha256:{number}", lambda: weights, "last")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = make_tiny_base(tmp_path_factory.mktemp("base"), "llama")
    return World(base, tuple(adapter(number) for number in range(ADAPTERS)))


@cache
def right(world: World, which: int, prompt: int, kind: str) -> tuple[float, ...]:
    """The answer of the general network to the request alone, without chunks or prefix cache."""
    item = Asked(PROMPTS[prompt], world.adapters[which] if which >= 0 else None, ASKS[kind])
    finish(_reference(world), item)
    return flat(item)


@cache
def _reference(world: World) -> Engine:
    return world.engine(reference=True, prefix_bytes=0)


def flat(item: Asked) -> tuple[float, ...]:
    """An answer as numbers."""
    if isinstance(item.request.ask, Sampling):
        return tuple(map(float, item.tokens))
    assert not item.error, item.error
    (event,) = item.events
    if isinstance(event, LogitsEvent):
        return tuple(event.logits.tolist())
    if isinstance(event, EmbeddingEvent):
        return tuple(event.vector.tolist())
    assert isinstance(event, ScoresEvent)
    return tuple(value for each in event.logprobs for value in each)


requests = st.tuples(
    st.integers(0, 3),  # steps before it comes
    st.integers(-1, ADAPTERS - 1),
    st.integers(0, len(PROMPTS) - 1),
    st.sampled_from(sorted(ASKS)),
    st.sampled_from([None, "x", "y"]),
    st.integers(1, 30),  # given up after so many steps; above 20: never
)


@settings(
    max_examples=int(os.environ.get("ADAPTERHUB_SCHEDULES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    asked=st.lists(requests, min_size=1, max_size=14),
    rows=st.integers(1, 6),
    resident=st.integers(1, 4),
    chunk=st.integers(1, 40),
    extra=st.integers(0, 60),
    host_bytes=st.sampled_from([0, 60_000, 1 << 30]),
    prefix_bytes=st.sampled_from([0, 60_000, 1 << 30]),
    reference=st.sampled_from([False, False, True]),
    forgets=st.booleans(),
)
def test_answers_do_not_depend_on_the_schedule(
    world: World,
    asked: list[tuple[int, int, int, str, str | None, int]],
    rows: int,
    resident: int,
    chunk: int,
    extra: int,
    host_bytes: int,
    prefix_bytes: int,
    reference: bool,
    forgets: bool,
) -> None:
    limits = Limits(rows=rows, step_tokens=chunk + extra, chunk_tokens=chunk, cache_tokens=512)
    engine = world.engine(
        limits=limits, resident=resident, host_bytes=host_bytes, prefix_bytes=prefix_bytes, reference=reference
    )
    items: list[tuple[Asked, tuple[int, int, str]]] = []
    ends: dict[int, list[Asked]] = {}
    steps = 0
    for pause, which, prompt, kind, share, last in asked:
        for _ in range(pause):
            engine.step()
            steps += 1
            for item in ends.pop(steps, []):
                item.request.cancelled = True
        who = max(which, 0) if kind == "classify" else which
        item = Asked(PROMPTS[prompt], world.adapters[who] if who >= 0 else None, ASKS[kind], share=share)
        engine.add(item.request)
        items.append((item, (who, prompt, kind)))
        if last <= 20:
            ends.setdefault(steps + last, []).append(item)
        if forgets and which >= 0:
            engine.forget(f"sha256:{which}")
    for _ in range(1000):
        if not engine.busy:
            break
        if not engine.step():
            assert not engine.busy or engine.wait(60), "nothing runs and nothing loads"
        steps += 1
        for item in ends.pop(steps, []):
            item.request.cancelled = True
    assert_free(engine)
    for item, (who, prompt, kind) in items:
        expected = right(world, who, prompt, kind)
        if item.request.cancelled and kind in ("short", "long", "seeded"):
            assert tuple(map(float, item.tokens)) == expected[: len(item.events)]
        elif item.request.cancelled and not item.events:
            continue
        else:
            assert flat(item) == pytest.approx(expected, abs=1e-8)
