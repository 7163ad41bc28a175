"""The packed decoder against transformers' own models of each family, and rows of a line against each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from adapterhub.base.llama import weights_of
from adapterhub.base.load import load_backbone
from adapterhub.training.packed.adapter import LearningAdapter, Site
from adapterhub.training.packed.decoder import PackedDecoder
from adapterhub.training.packed.line import Line, pack
from adapterhub.training.rows import Row
from tests.tiny import tiny_config
from tests.training.jobs import tiny_base

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BEGINNING = tuple(range(20, 40))
# Some begin alike, one is within another, one is longer than Mistral's window of 16.
IDS = [(*BEGINNING, 50, 51), (*BEGINNING, 50, 52, 53), (7,), BEGINNING[:5], (60, 61, 62), (*BEGINNING[:3], 70, 71)]


def model_of(folder: Path, family: str) -> Any:
    """A tiny model in float64, weights that do something, norms included."""
    if family == "qwen3":
        shape = {name: value for name, value in tiny_config("llama").to_dict().items() if name in _SHAPE}
        config = Qwen3Config(**shape, head_dim=16)
    else:
        config = tiny_config(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.5 if "emb" in name else 0.15)
    return model.double().eval()


_SHAPE = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
}


def rows_of(ids: list[tuple[int, ...]]) -> list[Row]:
    return [Row(each, len(each), (), 1.0, "") for each in ids]


def by_sequence(states: Tensor, line: Line, span: int = 0) -> list[Tensor]:
    """The states that a task reads, sequence by sequence."""
    found = line.spans[span]
    read = states[found.low : found.high][found.reading.index]
    return [read[found.reading.owner == i] for i in range(len(line.places[span]))]


@torch.no_grad()
def expected_of(model: Any, ids: tuple[int, ...]) -> Tensor:
    states: Tensor = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return states


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers_own_model(tmp_path: Path, family: str, share: bool) -> None:
    model = model_of(tmp_path, family)
    expected = [expected_of(model, ids) for ids in IDS]
    decoder = PackedDecoder(weights_of(model))
    line = pack([(rows_of(IDS), "all", share)])
    assert len(line.tokens) == (30 if share else sum(map(len, IDS)))
    found = by_sequence(decoder.forward(line, [None], learn=False), line)
    for states, wanted in zip(found, expected, strict=True):
        # Norms and angles are float32 inside transformers.
        torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)


def test_families_differ_in_what_makes_them_one(tmp_path: Path) -> None:
    layers = {family: weights_of(model_of(tmp_path, family)).layer(0) for family in FAMILIES}
    assert {family for family, layer in layers.items() if layer.window is not None} == {"mistral"}
    assert {family for family, layer in layers.items() if layer.stacks[0].bias is not None} == {"qwen2"}
    assert {family for family, layer in layers.items() if layer.q_norm is not None} == {"qwen3"}


def adapter_of(decoder: PackedDecoder, seed: int, rank: int, dropout: float = 0.0) -> LearningAdapter:
    """An adapter on every linear layer with weights that do something."""
    sites = []
    for layer in range(decoder.depth):
        for stack, weights in enumerate(decoder.stacks(layer)):
            first = 0
            for index, out in enumerate(weights.outs):
                sites.append(Site(layer, stack, index, weights.in_features, out, first, rank, 0.7))
                first += out
    adapter = LearningAdapter(sites, decoder.dtype, dropout=dropout)
    adapter.start(seed, 0.02)
    with torch.no_grad():
        adapter.b.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(seed))
    adapter.refresh()
    return adapter


@pytest.mark.parametrize("reads", ["last", "answers", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_line_are_what_each_is_alone(tmp_path: Path, family: str, reads: Any) -> None:
    decoder = PackedDecoder(weights_of(model_of(tmp_path, family)))
    adapters = [adapter_of(decoder, seed, rank) for seed, rank in ((1, 2), (2, 5))]
    given = [
        [Row(ids, max(1, len(ids) - 2), (), 1.0, "") for ids in part if len(ids) > 1] for part in (IDS[:4], IDS[1:])
    ]
    line = pack([(rows, reads, True) for rows in given])
    together = decoder.forward(line, adapters, learn=False).clone()
    for span, (rows, adapter) in enumerate(zip(given, adapters, strict=True)):
        for row, found in zip(rows, by_sequence(together, line, span), strict=True):
            alone = pack([([row], reads, False)])
            (wanted,) = by_sequence(decoder.forward(alone, [adapter], learn=False), alone)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtypes", ["float64", "float32", "bfloat16", "bfloat16 float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_reach_another_by_a_single_bit(tmp_path: Path, family: str, dtypes: str) -> None:
    model = model_of(tmp_path, family)
    for dtype in dtypes.split():  # numbers of bfloat16 are multiplied by a product of our own
        model = model.to(getattr(torch, dtype))
    decoder = PackedDecoder(weights_of(model))
    adapter = adapter_of(decoder, 1, 3)
    ids = [(5, 6, 7, 8), (5, 6, 9), (40, 41, 42, 43), (5, 6, 7)]

    def states(third: tuple[int, ...]) -> list[Tensor]:
        line = pack([(rows_of([*ids[:2], third, ids[3]]), "all", True)])
        return [each.clone() for each in by_sequence(decoder.forward(line, [adapter], learn=False), line)]

    before, after = states(ids[2]), states((40, 41, 99, 43))
    for i in (0, 1, 3):
        assert torch.equal(before[i], after[i])
    # Nor does a row see its own future.
    assert torch.equal(before[2][:2], after[2][:2])
    assert not torch.equal(before[2][2], after[2][2])
    assert not torch.equal(before[2][3], after[2][3])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_line_are_the_sum_of_those_of_its_rows(tmp_path: Path, family: str) -> None:
    decoder = PackedDecoder(weights_of(model_of(tmp_path, family)))
    adapter = adapter_of(decoder, 1, 3)
    weights = torch.randn(len(IDS), decoder.hidden, dtype=torch.float64)

    def learn(chosen: list[int]) -> None:
        line = pack([(rows_of([IDS[i] for i in chosen]), "last", True)])
        states = decoder.forward(line, [adapter], learn=True)
        gradient = torch.zeros_like(states)
        gradient[line.spans[0].reading.index] = weights[chosen]
        decoder.backward(gradient)
        adapter.collect()

    learn(list(range(len(IDS))))
    whole = {name: p.grad.clone() for name, p in adapter.parameters().items() if p.grad is not None}
    adapter.clear()
    for i in range(len(IDS)):
        learn([i])
    for name, parameter in adapter.parameters().items():
        assert whole[name].any()
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_finite_differences(tmp_path: Path, family: str, dropout: float) -> None:
    decoder = PackedDecoder(weights_of(model_of(tmp_path, family)))
    adapter = adapter_of(decoder, 1, 2, dropout)
    state = adapter.generator.get_state()
    line = pack([(rows_of(IDS), "last", dropout == 0)])
    torch.manual_seed(3)
    weights = torch.randn(len(line.needed), decoder.hidden, dtype=torch.float64)

    def loss() -> float:
        adapter.generator.set_state(state)  # the same dropout
        return float((decoder.forward(line, [adapter], learn=True) * weights).sum())

    loss()
    decoder.backward(weights.clone())
    adapter.collect()
    for parameter in adapter.parameters().values():
        assert parameter.grad is not None
        direction = torch.randn_like(parameter)
        slope = float((direction * parameter.grad).sum())
        step = 1e-6
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                adapter.refresh()
                values.append(loss())
                parameter.sub_(sign * step * direction)
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_dropout_is_drawn_in_training_only_and_leaves_the_mean(tmp_path: Path) -> None:
    decoder = PackedDecoder(weights_of(model_of(tmp_path, "llama")))
    adapter = adapter_of(decoder, 1, 2, 0.5)
    line = pack([(rows_of(IDS[:3]), "last", False)])
    calm = decoder.forward(line, [adapter], learn=False).clone()
    assert torch.equal(calm, decoder.forward(line, [adapter], learn=False))
    before = adapter.generator.get_state()
    drawn = decoder.forward(line, [adapter], learn=True).clone()
    assert not torch.equal(adapter.generator.get_state(), before)
    assert not torch.allclose(drawn, calm)


def test_what_the_kernels_do_not_know_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama", hidden_act="gelu")
    with pytest.raises(ValueError, match="no packed backward"):
        PackedDecoder(weights_of(load_backbone(base, torch.float32)))
