"""The real base: our engine, plain PEFT on the same folder, and merged weights give the same logits.

In float32 to 1e-4 of the largest logit, as one 576x576 product already differs by 6e-5 between 1 and 32 rows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.base.load import load_backbone
from adapterhub.base.source import Base, open_base
from adapterhub.engine.engine import Engine
from tests.adapters import load_peft, load_plain, make_adapter
from tests.engine.support import Asked, adapter_of, finish
from tests.engine.test_runner import start

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::FutureWarning")]
TARGETS = ["q_proj", "v_proj", "down_proj"]
PROMPTS = [[19556, 905, 28, 216, 37], [504, 1400, 282, 4649, 314], list(range(1000, 1040))]


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def engine(base: Base) -> Engine:
    return Engine(load_backbone(base, torch.float32), 512)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    limit = 1e-4 * float(expected.abs().max())
    assert float((found - expected).abs().max()) <= limit


@pytest.mark.parametrize(("rank", "rslora"), [(1, False), (8, True), (64, False)])
@torch.inference_mode()
def test_generation(base: Base, engine: Engine, tmp_path: Path, rank: int, rslora: bool) -> None:
    folder = make_adapter(
        base.path, tmp_path / f"g{rank}", "llama", rank=rank, rslora=rslora, targets=TARGETS, scale=0.02
    )
    adapter = adapter_of(folder, "llama", labels=False)
    outcome = engine.runner.run(start(engine.runner, engine.slots, [Asked(p, adapter, max_tokens=1) for p in PROMPTS]))
    model = load_peft(base.path, folder, None)
    plain = load_plain(base.path, None)
    assert outcome.tokens is not None
    expected = [model(input_ids=torch.tensor([p])).logits[0, -1] for p in PROMPTS]
    model = model.merge_and_unload()
    for row, logits, prompt in zip(outcome.tokens, expected, PROMPTS, strict=True):
        close(row, logits)
        close(row, model(input_ids=torch.tensor([prompt])).logits[0, -1])
        bare = plain(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert float((row - bare).abs().max()) > 1e-3 * float(bare.abs().max())


@pytest.mark.parametrize(("rank", "rslora"), [(1, True), (8, False), (64, True)])
@torch.inference_mode()
def test_classification(base: Base, engine: Engine, tmp_path: Path, rank: int, rslora: bool) -> None:
    folder = make_adapter(
        base.path, tmp_path / f"c{rank}", "llama", labels=6, rank=rank, rslora=rslora, targets=TARGETS, scale=0.02
    )
    asked = [Asked(prompt, adapter_of(folder, "llama", labels=True)) for prompt in PROMPTS]
    finish(engine, *asked)
    model = load_peft(base.path, folder, 6)
    expected = [model(input_ids=torch.tensor([p])).logits[0] for p in PROMPTS]
    model = model.merge_and_unload()
    for item, logits, prompt in zip(asked, expected, PROMPTS, strict=True):
        close(item.logits, logits)
        close(item.logits, model(input_ids=torch.tensor([prompt])).logits[0])


def test_a_mixed_batch_gives_each_row_what_it_gets_alone(base: Base, engine: Engine, tmp_path: Path) -> None:
    folders = [
        make_adapter(base.path, tmp_path / f"m{i}", "llama", rank=8, seed=i, targets=TARGETS, scale=0.12)
        for i in range(3)
    ]
    adapters = [None, *(adapter_of(folder, "llama", labels=False) for folder in folders)]
    options = {"max_tokens": 8}
    mixed = [Asked(PROMPTS[0], adapter, **options) for adapter in adapters]
    finish(engine, *mixed)
    answers = [tuple(item.tokens) for item in mixed]
    for item, adapter in zip(mixed, adapters, strict=True):
        alone = Asked(PROMPTS[0], adapter, **options)
        finish(engine, alone)
        assert alone.tokens == item.tokens
    assert len(set(answers)) == len(answers)
