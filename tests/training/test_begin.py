"""Where adapters begin: at another adapter, or at the principal components of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from adapterhub.base.load import load_tokenizer
from adapterhub.data.example import Example
from adapterhub.data.task import TaskSpec
from adapterhub.data.tokens import encode_input
from adapterhub.errors import ConfigError
from adapterhub.lora.files import read_tensors
from adapterhub.training.begin import begin_at, principal_pairs
from adapterhub.training.general import GeneralNetwork, begin_at_principal
from adapterhub.training.job import TrainingJob
from adapterhub.training.objectives import objective_for
from adapterhub.training.train import Trained, Trainer, train_adapter
from tests.training.jobs import COLOURS, Recorder, make_job, tiny_base, toy_rows
from tests.training.networks import job_of, packed_of, peft_of, rows_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # asked by PEFT


def written(folder: Path, base: Any, **changes: Any) -> Path:
    """The folder of an adapter trained a little."""
    settings = {"steps": 6, "batch_size": 8, "learning_rate": 2e-2}
    train_adapter(make_job(base, toy_rows(24), training=settings, **changes), folder, Recorder())
    return folder


def of(job: TrainingJob) -> tuple[Any, Any]:
    """The network that trains a job, and a fresh learner."""
    return packed_of(job) if Trainer(job.base)._is_packed(job) else peft_of(job)


def logits_of(network: Any, learner: Any, kind: str = "classification") -> list[float]:
    """What tells one function from another: each row's loss."""
    objective = objective_for(kind)  # type: ignore[arg-type]
    return [network.judge(learner, objective, [row]).loss for row in rows_of(kind)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("lora", [{}, {"alpha": 3.0}, {"variant": "rslora"}, {"dropout": 0.3}])
def test_a_warm_start_begins_with_the_same_outputs(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    base = tiny_base(tmp_path, family)
    folder = written(tmp_path / "first", base, lora={"rank": 4})
    network, first = of(make_job(base, toy_rows(4), lora={"rank": 4}))
    begin_at(first, COLOURS, folder)
    expected = logits_of(network, first)
    network, learner = of(make_job(base, toy_rows(4), lora={"rank": 4, **lora}))
    fresh = logits_of(network, learner)
    begin_at(learner, COLOURS, folder)
    assert logits_of(network, learner) == pytest.approx(expected, rel=1e-4)
    assert logits_of(network, learner) != pytest.approx(fresh, rel=1e-2)
    for name, tensor in read_tensors(folder).items():  # the first one is a copy
        torch.testing.assert_close(first.saved()[name], tensor)


def test_labels_are_matched_by_name_and_new_ones_stay_fresh(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    folder = written(tmp_path / "first", base)
    head = read_tensors(folder)["base_model.model.score.weight"]
    labels = ("green", "red", "blue")
    _, learner = packed_of(make_job(base, toy_rows(4), labels=labels))
    before = learner.adapter.head.detach().clone()  # type: ignore[union-attr]
    begin_at(learner, labels, folder)
    after = learner.adapter.head.detach()  # type: ignore[union-attr]
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], head[COLOURS.index("red")])
    assert torch.equal(after[2], head[COLOURS.index("blue")])


def test_an_adapter_of_one_kind_begins_another_without_its_head(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    folder = written(tmp_path / "first", base)
    _, learner = packed_of(job_of(tmp_path, "generation"))
    begin_at(learner, (), folder)
    given = read_tensors(folder)
    assert all(torch.equal(tensor, given[name]) for name, tensor in learner.saved().items())


def test_layers_that_the_other_has_not_stay_fresh(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    folder = written(tmp_path / "first", base, lora={"rank": 8, "layers": "top-1"})
    _, learner = packed_of(make_job(base, toy_rows(4)))
    before = {name: tensor.clone() for name, tensor in learner.saved().items()}
    begin_at(learner, COLOURS, folder)
    given = read_tensors(folder)
    for name, tensor in learner.saved().items():
        assert torch.equal(tensor, given[name] if name in given else before[name])
    assert any(".layers.0." in name for name in before)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    folder = written(tmp_path / "first", base, lora={"rank": 4})
    with pytest.raises(ConfigError, match=r"init: .*q_proj.*lora_A.* is \[4, 32\] .* \[8, 32\] .*the same lora\.rank"):
        begin_at(packed_of(make_job(base, toy_rows(4), lora={"rank": 8}))[1], COLOURS, folder)
    with pytest.raises(ConfigError, match=r"init: .* has no magnitudes \(DoRA\), this one not|init: .*DoRA"):
        begin_at(peft_of(make_job(base, toy_rows(4), lora={"rank": 4, "variant": "dora"}))[1], COLOURS, folder)
    one = written(tmp_path / "one", base, lora={"rank": 4, "targets": ["q_proj"]})
    _, other = packed_of(make_job(base, toy_rows(4), labels=("x", "y"), lora={"rank": 4, "targets": ["v_proj"]}))
    with pytest.raises(ConfigError, match="no module in common"):
        begin_at(other, ("x", "y"), one)


def test_training_begins_at_the_adapter_named(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    folder = written(tmp_path / "first", base)
    settings = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12, "warmup": 0.0}
    job = make_job(base, toy_rows(8), training=settings)
    (outcome,) = Trainer(base).train([replace(job, init=folder)], Recorder())
    assert isinstance(outcome, Trained)
    for name, tensor in read_tensors(folder).items():
        torch.testing.assert_close(outcome.tensors[name], tensor, rtol=1e-5, atol=1e-6)


# Principal components


@pytest.mark.parametrize("scaling", [1.0, 2.5])
def test_principal_pairs_are_the_best_approximation(scaling: float) -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 12, dtype=torch.float64))[0] for size in (20, 16))
    weight = left @ torch.diag(torch.logspace(0, -3, 12, dtype=torch.float64)) @ right.T
    found = principal_pairs(["w"], lambda name: weight, lambda name: 4, lambda name: scaling, 3)
    a, b = found.pairs["w"]
    assert (a.shape, b.shape) == ((4, 16), (20, 4))
    u, s, v = torch.linalg.svd(weight)
    best = u[:, :4] * s[:4] @ v[:4]
    torch.testing.assert_close(scaling * b @ a, best, rtol=0, atol=1e-8)
    # Both factors carry the same weight.
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))
    again = principal_pairs(["w"], lambda name: weight, lambda name: 4, lambda name: scaling, 3).pairs["w"]
    assert torch.equal(again[0], a)
    state = torch.get_rng_state()
    principal_pairs(["w"], lambda name: weight, lambda name: 4, lambda name: scaling, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_weight_with_fewer_components_than_the_rank_is_its_pair_whole() -> None:
    torch.manual_seed(0)
    for shape in ((5, 12), (12, 5)):
        weight = torch.randn(shape, dtype=torch.float64)
        a, b = principal_pairs(["w"], lambda name: weight, lambda name: 8, lambda name: 2.0, 0).pairs["w"]  # noqa: B023
        assert (a.shape, b.shape) == ((8, shape[1]), (shape[0], 8))
        torch.testing.assert_close(2.0 * b @ a, weight, rtol=0, atol=1e-9)


PISSA: list[dict[str, Any]] = [
    {"rank": 4},
    {"rank": 3, "alpha": 5.0, "variant": "rslora"},
    {"rank": 40, "rank_pattern": {"llama": "q_proj", "qwen2": "q_proj", "gpt2": "c_attn", "bert": "query"}},
]


def lora_of(family: str, lora: dict[str, Any]) -> dict[str, Any]:
    """The settings for a family: more ranks than weights have, but for one module."""
    return {**lora, "rank_pattern": {lora["rank_pattern"][family]: 2}} if "rank_pattern" in lora else lora


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert"])
@pytest.mark.parametrize("lora", PISSA)
def test_before_the_first_step_the_function_is_the_bases_own(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    job = make_job(tiny_base(tmp_path, family), toy_rows(4), lora=lora_of(family, lora))
    network, learner = of(job)
    expected = logits_of(network, learner)  # B is zero
    if isinstance(network, GeneralNetwork):
        begin_at_principal(learner, 0)
    else:
        network.begin_at_principal(learner, 0)
    assert logits_of(network, learner) == pytest.approx(expected, rel=2e-4)
    assert all(bool(tensor.any()) for name, tensor in learner.saved().items() if "lora_B" in name)
    # And what learns is no longer nothing: without it another function is left.
    with torch.no_grad():
        for name, tensor in learner.saved().items():
            if "lora_B" in name:
                tensor.zero_()
    learner.refresh()
    assert logits_of(network, learner) != pytest.approx(expected, rel=1e-2)


@torch.no_grad()
def plain_loss(base: Any, folder: Path, spec: TaskSpec, rows: Sequence[Example]) -> float:
    """The mean loss of an adapter that PEFT's own loader put on transformers' own model."""
    plain = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=2)
    model, tokenizer, loss = PeftModel.from_pretrained(plain, folder).eval(), load_tokenizer(base), 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([encode_input(tokenizer, spec, row.fields)])).logits
        loss += float(torch.nn.functional.cross_entropy(logits, torch.tensor([COLOURS.index(row.label or "")])))
    return loss / len(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("lora", PISSA)
def test_after_training_plain_peft_loads_plain_lora_of_twice_the_rank(
    tmp_path: Path, family: str, lora: dict[str, Any]
) -> None:
    base, lora = tiny_base(tmp_path, family), lora_of(family, lora)
    validation = toy_rows(12, seed=5)
    settings = {"steps": 8, "batch_size": 8, "learning_rate": 5e-3, "precision": "float32"}
    job = make_job(base, toy_rows(48), validation, training=settings, lora={**lora, "init": "pissa"})
    progress = Recorder()
    (outcome,) = Trainer(base, "float32").train([job], progress)
    assert isinstance(outcome, Trained)
    assert outcome.config.rank == 2 * lora["rank"]
    assert outcome.config.rank_pattern == {name: 2 * rank for name, rank in lora.get("rank_pattern", {}).items()}
    given = make_job(base, validation, lora=lora).recipe.lora
    root = math.sqrt if given.variant == "rslora" else float
    assert given.alpha is not None
    assert outcome.config.alpha / root(outcome.config.rank) == pytest.approx(given.alpha / root(given.rank))
    outcome.write(tmp_path / "out")
    assert outcome.result.best is not None
    loss = plain_loss(base, tmp_path / "out", outcome.result.spec, validation)
    assert loss == pytest.approx(outcome.result.best.loss, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_magnitudes_learn_and_plain_peft_agrees(tmp_path: Path, family: str) -> None:
    base = tiny_base(tmp_path, family)
    validation = toy_rows(12, seed=5)
    settings = {"epochs": 4.0, "batch_size": 16, "learning_rate": 5e-3, "precision": "float32"}
    job = make_job(base, toy_rows(96), validation, training=settings, lora={"rank": 4, "variant": "dora"})
    outcome = train_adapter(job, tmp_path / "out", Recorder())
    assert outcome.best is not None
    assert outcome.best.value > 0.9
    tensors = read_tensors(tmp_path / "out")
    assert any("lora_magnitude_vector" in name for name in tensors)
    loss = plain_loss(base, tmp_path / "out", outcome.spec, validation)
    assert loss == pytest.approx(outcome.best.loss, rel=1e-3)
    # A warm start takes the magnitudes along.
    _, learner = of(replace(job, train=toy_rows(4)))
    begin_at(learner, COLOURS, tmp_path / "out")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in learner.saved().items())
