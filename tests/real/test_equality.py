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
from adapterhub.engine.request import Adapter
from adapterhub.engine.scheduler import Limits
from tests.adapters import load_peft, load_plain, make_adapter
from tests.engine.direct import Direct
from tests.engine.reference import Judge
from tests.engine.support import Asked, adapter_of, finish

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
    direct = Direct(engine.runner)
    rows = [direct.row(prompt, adapter) for prompt in PROMPTS]
    found = direct.prefill(rows, chunk=16)
    for row in rows:
        direct.leave(row)
    engine.runner.unload(0)
    model = load_peft(base.path, folder, None)
    plain = load_plain(base.path, None)
    expected = [model(input_ids=torch.tensor([p])).logits[0, -1] for p in PROMPTS]
    model = model.merge_and_unload()
    for row, logits, prompt in zip(found, expected, PROMPTS, strict=True):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_greedy_tokens_of_a_churning_batch_are_the_reference_runners(
    base: Base, tmp_path: Path, dtype: torch.dtype
) -> None:
    """A token is right if its logit, as the reference runner sees the text in float32, is within ε of the largest.

    ε is 1e-3 in float32, and in bfloat16 twice what that precision does to the reference runner's own logits.
    """
    settings = ((16, False), (4, True), (16, True))
    folders = [
        make_adapter(
            base.path, tmp_path / f"c{i}", "llama", rank=rank, seed=i, rslora=rslora, targets=TARGETS, scale=0.1
        )
        for i, (rank, rslora) in enumerate(settings)
    ]
    engine = Engine(load_backbone(base, dtype), 512, limits=Limits(rows=4, step_tokens=64, chunk_tokens=24), resident=2)
    assert engine.runner.identity.startswith("lean/")

    def adapter(index: int, precision: torch.dtype) -> Adapter | None:
        return None if index < 0 else adapter_of(folders[index], "llama", labels=False, dtype=precision)

    asked = [
        (prompt, index, Asked(prompt, adapter(index, dtype), max_tokens=8))
        for prompt in PROMPTS
        for index in range(-1, len(folders))
    ]
    finish(engine, *(item for _, _, item in asked), steps=2000)
    assert engine.slots.evictions > 0
    engine.close()
    wide, same = Judge(load_backbone(base, torch.float32)), Judge(load_backbone(base, dtype))
    changed = 0
    for prompt, index, item in asked:
        text = prompt + item.tokens[:-1]
        logits = wide.logits(text, adapter(index, torch.float32))
        moved = (same.logits(text, adapter(index, dtype)) - logits).abs().max()
        limit = max(1e-3, 2 * float(moved))
        assert wide.shortfall(prompt, item.tokens, adapter(index, torch.float32)) <= limit, (prompt, index)
        changed += index >= 0 and wide.shortfall(prompt, item.tokens, None) > limit
    assert changed > len(asked) // 3  # adapters that say what the base says would prove nothing
