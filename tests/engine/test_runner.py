"""One forward of the runner against plain PEFT and merged weights, in float64, where equality is to 1e-9."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.engine.request import Row
from adapterhub.engine.runner import Runner
from adapterhub.engine.scheduler import Plan
from adapterhub.engine.slots import Slots
from adapterhub.errors import BaseError
from tests.adapters import load_peft, load_plain, make_adapter
from tests.tiny import make_tiny_base

from .support import ALL, DECODERS, Asked, adapter_of, make_engine

PROMPTS = [[5, 6, 7, 8, 9], [40, 41], [100, 90, 80, 70, 60, 50, 40, 30, 20], [7] * 30]
SETTINGS = [(1, False), (8, False), (64, False), (8, True), (64, True)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(root / family, family) for family in ALL}


def start(runner: Runner, slots: Slots, asked: list[Asked]) -> Plan:
    rows = []
    for each in asked:
        slot = slots.acquire(each.request.adapter)
        assert slot is not None
        rows.append(Row(each.request, slot))
    return Plan((), tuple(rows))


@pytest.mark.parametrize("family", DECODERS)
@torch.inference_mode()
def test_generation_logits(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases[family]
    runner = make_engine(base, family, dtype=torch.float64).runner
    slots = Slots(8, runner.load, runner.unload)
    folders = [
        make_adapter(base, tmp_path / f"{rank}-{rslora}", family, rank=rank, rslora=rslora, seed=rank)
        for rank, rslora in SETTINGS
    ]
    models = [load_plain(base, None, torch.float64)] + [load_peft(base, f, None, torch.float64) for f in folders]
    merged = [None] + [load_peft(base, f, None, torch.float64).merge_and_unload() for f in folders]
    adapters = [None] + [adapter_of(f, family, labels=False, dtype=torch.float64) for f in folders]
    for prompt in PROMPTS:
        outcome = runner.run(start(runner, slots, [Asked(prompt, a, max_tokens=1) for a in adapters]))
        assert outcome.tokens is not None
        for row, model, flat in zip(outcome.tokens, models, merged, strict=True):
            expected = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-9)
            if flat is not None:
                again = flat(input_ids=torch.tensor([prompt])).logits[0, -1]
                torch.testing.assert_close(row, again, rtol=0, atol=1e-9)
        assert len({float(row.sum()) for row in outcome.tokens}) == len(adapters)


@pytest.mark.parametrize("family", ALL)
@torch.inference_mode()
def test_classification_logits(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases[family]
    runner = make_engine(base, family, dtype=torch.float64).runner
    slots = Slots(8, runner.load, runner.unload)
    for rank, rslora in SETTINGS:
        folder = make_adapter(base, tmp_path / f"{rank}-{rslora}", family, rank=rank, rslora=rslora, labels=3)
        adapter = adapter_of(folder, family, labels=True, dtype=torch.float64)
        plain = load_peft(base, folder, 3, torch.float64)
        merged = load_peft(base, folder, 3, torch.float64).merge_and_unload()
        outcome = runner.run(start(runner, slots, [Asked(prompt, adapter) for prompt in PROMPTS]))
        for (row, logits), prompt in zip(outcome.heads, PROMPTS, strict=True):
            assert row.request.tokens == tuple(prompt)
            for model in (plain, merged):
                expected = model(input_ids=torch.tensor([prompt])).logits[0]
                torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


def test_a_family_nobody_proved_is_checked_when_it_loads(bases: dict[str, Path]) -> None:
    model = load_plain(bases["llama"], None)
    model.config.model_type = "unheard-of"
    Runner(model)
    broken = load_plain(bases["llama"], None)
    broken.config.model_type = "unheard-of"
    original = broken.base_model.forward

    def forward(**kwargs: object) -> object:
        output = original(**kwargs)  # a family that mixes the tokens of a line outside its attention
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(dim=1, keepdim=True)
        return output

    broken.base_model.forward = forward
    with pytest.raises(BaseError, match="cannot be served"):
        Runner(broken)
