from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from adapterhub.base.source import open_base
from adapterhub.base.tensors import stored_tensors
from adapterhub.data.example import Example
from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.errors import ConfigError, DataError
from adapterhub.pipeline.estimate import (
    Lengths,
    adapted_modules,
    adapter_parameters,
    estimate,
    matmul_rate,
    measure_lengths,
)
from adapterhub.recipe import Recipe, load_recipe
from adapterhub.training.targets import Modules, choose_targets
from tests.tiny import FAMILIES, byte_tokenizer, make_tiny_base

ROWS = Lengths(rows=100, mean=10.0, completion=0.0, longest=20, longest_where="train.jsonl:1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in stored_tensors(folder)}


def recipe(folder: Path, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text("{task: t, base: ./base, kind: classification, data: {train: t.jsonl}}")
    return load_recipe(file, overrides)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # asked by PEFT
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["all", "top-2", [0, 2]])
def test_adapter_parameters_are_those_that_peft_trains(tmp_path: Path, family: str, layers: Any) -> None:
    folder = make_tiny_base(tmp_path / family, family)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    heads = ("classifier", "score")
    targets = choose_targets(Modules.of(model, heads), "all-linear", layers)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        target_modules=list(targets.names),
        layers_to_transform=None if targets.layers is None else list(targets.layers),
        fan_in_fan_out=targets.fan_in_fan_out,
    )
    trained = sum(p.numel() for p in get_peft_model(model, config).parameters() if p.requires_grad)
    modules = adapted_modules(shapes_of(folder), "all-linear", layers)
    assert adapter_parameters(modules, 3, head=5 * 32 + (5 if family == "bert" else 0)) == trained


def test_targets_and_layers_choose_modules(tmp_path: Path) -> None:
    shapes = shapes_of(make_tiny_base(tmp_path / "base"))
    modules = adapted_modules(shapes, ["q_proj", "mlp.down_proj"], "top-1")
    assert modules == {
        "model.layers.2.self_attn.q_proj.weight": (32, 32),
        "model.layers.2.mlp.down_proj.weight": (32, 48),
    }
    assert adapter_parameters(modules, 2) == 2 * (64 + 80)
    assert adapter_parameters(modules, 2, ranks={"down_proj": 3}) == 2 * 64 + 3 * 80
    assert adapter_parameters(modules, 2, ranks={"proj": 9, "layers.2.mlp.down_proj": 3}) == 2 * 64 + 3 * 80


@pytest.mark.parametrize(
    ("targets", "layers", "said"),
    [
        (["qproj"], "all", "'qproj' is no linear module of this base; it has down_proj, "),
        (["proj"], "all", "'proj' is no linear module"),
        ("all-linear", "top-4", "'top-4', but this base has 3 layers, 0 to 2"),
        ("all-linear", (1, 3), r"\[1, 3\], but this base has 3 layers"),
    ],
)
def test_what_the_base_does_not_have_is_refused(tmp_path: Path, targets: Any, layers: Any, said: str) -> None:
    shapes = shapes_of(make_tiny_base(tmp_path / "base"))
    with pytest.raises(ConfigError, match=said):
        adapted_modules(shapes, targets, layers)


def test_lengths_are_counted_as_training_counts_them() -> None:
    spec = TaskSpec("generation", "sha256:0", 30, prompt=PromptSpec("plain", template="Q: {prompt}"))
    rows = [Example(str(n), {"prompt": "a" * n, "completion": "bb"}, where=f"t:{n}") for n in range(1, 12)]
    lengths = measure_lengths(byte_tokenizer(), spec, rows)
    assert (lengths.rows, lengths.completion, lengths.longest, lengths.longest_where) == (11, 3.0, 17, "t:11")
    assert lengths.mean == pytest.approx(3 + 6 + 3)
    rows.append(Example("long", {"prompt": "a" * 25, "completion": "bb"}, where="t:12"))
    with pytest.raises(DataError, match="t:12: the row has 31 tokens, more than max_length 30"):
        measure_lengths(byte_tokenizer(), spec, rows)


def test_every_sequence_of_a_pair_is_counted() -> None:
    preference = Example("1", {"prompt": "abc", "chosen": "xy", "rejected": "z"}, where="p.jsonl:1")
    found = measure_lengths(byte_tokenizer(), TaskSpec("generation", "sha256:0", 64), [preference])
    # Prompt twice, both completions, an EOS after each.
    assert (found.mean, found.completion, found.longest) == (3 + 3 + 3 + 2, 5.0, 6)
    pair = Example("1", {"text": "ab", "positive": "cdef", "negative": "ghijk"}, where="e.jsonl:1")
    found = measure_lengths(byte_tokenizer(), TaskSpec("embedding", "sha256:0", 64), [pair])
    assert (found.mean, found.completion, found.longest, found.longest_where) == (11.0, 0.0, 5, "e.jsonl:1")
    with pytest.raises(DataError, match=r"e\.jsonl:1: the row has 5 tokens, more than max_length 4"):
        measure_lengths(byte_tokenizer(), TaskSpec("embedding", "sha256:0", 4), [pair])


def test_means_come_from_a_sample_and_the_longest_from_all() -> None:
    spec = TaskSpec("classification", "sha256:0", 600)
    rows = [Example(str(n), {"text": "ab"}, where=f"t:{n}") for n in range(5000)]
    rows[4321] = Example("long", {"text": "a" * 500}, where="t:4321")
    lengths = measure_lengths(byte_tokenizer(), spec, rows)
    assert (lengths.mean, lengths.longest, lengths.longest_where) == (2.0, 500, "t:4321")


def test_an_estimate_follows_the_recipe(tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "base")
    plain = recipe(tmp_path)
    base = open_base(plain.base_name, fetch=False)
    spec = TaskSpec("classification", base.fingerprint, 100, labels=("a", "b"))
    found = estimate(plain, base, spec, ROWS, ROWS)
    assert (found.steps, found.tokens, found.longest_row) == (12, 3000, 20)
    assert (
        found.adapter_parameters
        == 8 * sum(map(sum, adapted_modules(shapes_of(base.path), "all-linear", "all").values())) + 64
    )
    assert found.adapter_bytes > 4 * found.adapter_parameters
    assert found.seconds > 0
    assert found.to_record()["peak_memory_bytes"] > base.parameters * 4
    larger = recipe(
        tmp_path, "lora.rank=16", "training.steps=24", "training.batch_size=64", "training.precision=bfloat16"
    )
    more = estimate(larger, base, spec, ROWS, ROWS)
    assert (more.steps, more.tokens, more.precision) == (24, 12_000, "bfloat16")
    assert more.adapter_parameters == 2 * found.adapter_parameters - 64
    assert more.peak_memory_bytes != found.peak_memory_bytes


def test_generation_counts_the_vocabulary(tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "base")
    plain = recipe(tmp_path, "kind=generation")
    base = open_base(plain.base_name, fetch=False)
    spec = TaskSpec("generation", base.fingerprint, 100)
    short, long = (Lengths(100, 10.0, completion, 20, "") for completion in (1.0, 9.0))
    memory = [estimate(plain, base, spec, rows, rows).peak_memory_bytes for rows in (short, long)]
    assert memory[1] > memory[0]


def test_the_rate_is_that_of_real_products() -> None:
    assert 1e7 < matmul_rate(torch.float32, 64, seconds=0.01) < 1e15
