"""One forward of the runner against plain PEFT and merged weights, in float64, where equality is to 1e-9."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from adapterhub.engine.plan import Plan, Span
from adapterhub.engine.request import Classify, Embed, Score
from adapterhub.engine.runner import Runner
from adapterhub.errors import BaseError
from tests.adapters import load_peft, load_plain, make_adapter
from tests.tiny import ENCODERS, make_tiny_base

from .direct import Direct
from .support import ALL, DECODERS, adapter_of

PROMPTS = [[5, 6, 7, 8, 9], [40, 41], [100, 90, 80, 70, 60, 50, 40, 30, 20], [7] * 30]
# Rank, rsLoRA, DoRA.
SETTINGS = [(1, False, False), (8, False, False), (64, False, True), (8, True, False), (64, True, False)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(root / family, family) for family in ALL}


def direct(base: Path, family: str, *, reference: bool = False) -> Direct:
    cls = AutoModel if family in ENCODERS else AutoModelForCausalLM
    return Direct(Runner(cls.from_pretrained(base, dtype=torch.float64), reference=reference))


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("family", DECODERS)
@torch.inference_mode()
def test_generation_equals_peft_and_merged_weights_at_every_rank(
    family: str, reference: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[family]
    driven = direct(base, family, reference=reference)
    folders = [
        make_adapter(base, tmp_path / f"{rank}-{rslora}", family, rank=rank, rslora=rslora, dora=dora, seed=rank)
        for rank, rslora, dora in SETTINGS
    ]
    models = [load_plain(base, None, torch.float64)] + [load_peft(base, f, None, torch.float64) for f in folders]
    merged = [None] + [load_peft(base, f, None, torch.float64).merge_and_unload() for f in folders]
    adapters = [None] + [adapter_of(f, family, labels=False, dtype=torch.float64) for f in folders]
    for prompt in PROMPTS:
        found = driven.prefill([driven.row(prompt, adapter) for adapter in adapters], chunk=4)
        for row, model, flat in zip(found, models, merged, strict=True):
            expected = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-9)
            if flat is not None:
                again = flat(input_ids=torch.tensor([prompt])).logits[0, -1]
                torch.testing.assert_close(row, again, rtol=0, atol=1e-9)
        assert len({float(row.sum()) for row in found}) == len(adapters)


@pytest.mark.parametrize("family", ALL)
@torch.inference_mode()
def test_classification_equals_peft_and_merged_weights_at_every_rank(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[family]
    driven = direct(base, family)
    for rank, rslora, dora in SETTINGS:
        folder = make_adapter(
            base, tmp_path / f"{rank}-{rslora}", family, rank=rank, rslora=rslora, dora=dora, labels=3
        )
        adapter = adapter_of(folder, family, labels=True, dtype=torch.float64)
        plain = load_peft(base, folder, 3, torch.float64)
        merged = load_peft(base, folder, 3, torch.float64).merge_and_unload()
        rows = [driven.row(prompt, adapter, Classify()) for prompt in PROMPTS]
        spans = tuple(Span(row, row.request.tokens, 0, keeps=False, last=True) for row in rows)
        outcome = driven.runner.run(Plan((), spans))
        assert outcome.logits is None
        for (row, logits), prompt in zip(outcome.heads, PROMPTS, strict=True):
            assert row.request.tokens == tuple(prompt)
            for model in (plain, merged):
                expected = model(input_ids=torch.tensor([prompt])).logits[0]
                torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ALL)
@torch.inference_mode()
def test_pooled_states(family: str, bases: dict[str, Path]) -> None:
    driven, plain = direct(bases[family], family), load_plain(bases[family], 2, torch.float64).base_model
    for prompt in PROMPTS:
        states = plain(input_ids=torch.tensor([prompt])).last_hidden_state[0]
        for pooling, expected in (("mean", states.sum(0)), ("last", states[-1]), ("cls", states[0])):
            row = driven.row(prompt, None, Embed(pooling))
            ((_, found),) = driven.runner.run(Plan((), (driven.span(row, 0, len(prompt)),))).states
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    if family not in ENCODERS:
        row = driven.row(prompt, None, Embed("mean"))
        parts = [driven.span(row, low, min(low + 7, len(prompt))) for low in range(0, len(prompt), 7)]
        sums = [driven.runner.run(Plan((), (part,))).states[0][1] for part in parts]
        torch.testing.assert_close(sum(sums), states.sum(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", DECODERS)
@torch.inference_mode()
def test_scores_of_continuations_share_one_prompt(family: str, bases: dict[str, Path]) -> None:
    prompt, continuations = [5, 6, 7, 8, 9], ((10, 11, 12), (13,), (14, 15), (14, 16))
    driven, plain = direct(bases[family], family), load_plain(bases[family], None, torch.float64)
    row = driven.row(prompt, None, Score(continuations))
    long = [c for c in continuations if len(c) > 1]
    whole = Span(row, row.request.tokens, 0, True, True, reads=tuple((4, c[0]) for c in continuations))
    inputs = tuple(token for c in long for token in c[:-1])
    wanted = tuple(token for c in long for token in c[1:])
    branch = Span(row, inputs, 5, False, False, tuple(len(c) - 1 for c in long), tuple(enumerate(wanted)))
    outcome = driven.runner.run(Plan((), (whole, branch)))
    assert outcome.logits is None
    firsts, rest = (scores for _, scores in outcome.scores)
    found = [[float(firsts[i])] for i in range(4)]
    position = 0
    for i, continuation in enumerate(continuations):
        for _ in continuation[1:]:
            found[i].append(float(rest[position]))
            position += 1
    for continuation, scores in zip(continuations, found, strict=True):
        logits = plain(input_ids=torch.tensor([prompt + list(continuation)])).logits[0].log_softmax(-1)
        expected = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation)]
        assert scores == pytest.approx(expected, abs=1e-9)


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
