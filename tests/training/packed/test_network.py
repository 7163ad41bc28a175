"""The packed decoder against PEFT's network, gradient by gradient, and tasks side by side against each alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.base.record import Base
from adapterhub.errors import ConfigError
from adapterhub.training.job import TrainingJob
from adapterhub.training.objectives import objective_for
from adapterhub.training.packed.network import LINE_TOKENS, PackedNetwork, _cut, _parts
from adapterhub.training.rows import Row
from adapterhub.training.train import Trained, Trainer
from tests.training.jobs import COLOURS, Recorder, example, make_job, tiny_base, toy_rows
from tests.training.networks import (
    CPU,
    FAMILIES,
    KINDS,
    job_of,
    packed_gradients,
    packed_of,
    peft_gradients,
    peft_of,
    randomised,
    rows_of,
    turn_of,
)


def agree(job: TrainingJob) -> None:
    """Hold loss and gradients of both networks together, for the same weights and rows."""
    network, learner = packed_of(job)
    reference, peft = peft_of(job)
    randomised(learner)
    randomised(peft, learner)
    rows, objective = rows_of(job.recipe.kind), objective_for(job.recipe.kind)
    (loss,) = network.learn([turn_of(learner, objective, rows)])
    (expected,) = reference.learn([turn_of(peft, objective, rows)])
    assert loss == pytest.approx(expected, rel=1e-5)
    found, wanted = packed_gradients(learner), peft_gradients(peft)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=name)
    # Validation says the same, and so does the bare base.
    judged, other = (net.judge(one, objective, rows) for net, one in ((network, learner), (reference, peft)))
    assert judged.loss == pytest.approx(other.loss, rel=1e-5)
    assert judged.share == other.share
    assert objective.value(judged.tallies, 0.0) == pytest.approx(objective.value(other.tallies, 0.0))
    if job.recipe.kind in ("generation", "preference"):
        bare = zip(network.bare_logprobs(learner, rows), reference.bare_logprobs(peft, rows), strict=True)
        assert all(one == pytest.approx(other, rel=1e-4) for one, other in bare)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_peft(tmp_path: Path, kind: str, family: str) -> None:
    agree(job_of(tmp_path, kind, family))


@pytest.mark.parametrize(
    "lora",
    [
        {"layers": "top-1"},
        {"layers": [1]},
        {"layers": [0, 2], "variant": "rslora", "rank": 4},
        {"targets": ["k_proj", "down_proj"], "rank": 3, "alpha": 5.0},
        {"targets": ["o_proj"], "layers": "top-2"},
        {"rank": 4, "rank_pattern": {"q_proj": 2, "mlp.up_proj": 7}},
        {"rank": 4, "rank_pattern": {"q_proj": 2, "layers.1.self_attn.q_proj": 7}},  # the first in the file counts
        {"rank": 4, "rank_pattern": {"v_proj": 1}, "variant": "rslora", "targets": ["q_proj", "v_proj"]},
    ],
)
@pytest.mark.parametrize("kind", ["classification", "generation", "embedding"])
def test_so_they_are_for_any_choice_of_layers_targets_and_ranks(
    tmp_path: Path, kind: str, lora: dict[str, Any]
) -> None:
    agree(job_of(tmp_path, kind, lora=lora))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", KINDS)
def test_lines_of_any_length_come_to_the_same(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network, learner = packed_of(job_of(tmp_path, kind))
    randomised(learner)
    rows, objective = rows_of(kind), objective_for(kind)
    results = []
    for tokens in (LINE_TOKENS, 30, 1):
        monkeypatch.setattr("adapterhub.training.packed.network.LINE_TOKENS", tokens)
        learner.clear()
        (loss,) = network.learn([turn_of(learner, objective, rows)])
        judged = network.judge(learner, objective, rows)
        assert judged.loss / judged.share == pytest.approx(loss, rel=1e-9)
        results.append((loss, packed_gradients(learner)))
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-9)
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-10)


# What is cut, and how


def bare(*lengths: int, first: int = 5) -> list[Row]:
    return [Row((first + i, *range(10, 9 + length)), length, (), 1.0, "") for i, length in enumerate(lengths)]


def test_how_a_task_is_cut_depends_on_its_own_rows_alone() -> None:
    one, other = bare(400, 500, 300, 900, 2000, 20), bare(30, 700, 10)
    alone = [part for line in _parts([one]) for _, part in line]
    beside = [part for line in _parts([other, one]) for i, part in line if i == 1]
    assert alone == beside == [part for part, _ in _cut(one)]
    assert sorted(row.ids for part in alone for row in part) == sorted(row.ids for row in one)
    assert all(len(part) == 1 or sum(row.tokens for row in part) <= LINE_TOKENS for part in alone)
    # No line holds two parts of a task: dropout would be drawn in another order than where they lie apart.
    for line in _parts([other, one, other]):
        numbers = [i for i, _ in line]
        assert len(numbers) == len(set(numbers))
    assert list(_parts([[], []])) == []


# Many tasks at once


def pairs_of(count: int) -> list[Any]:
    return [example(f"f:{n}", text="ab" * (n % 3 + 1) + str(n), positive=f"p{n % 7}") for n in range(count)]


def answers(count: int) -> list[Any]:
    return [example(f"f:{n}", prompt="ab" * (n % 3 + 1), completion="xyz"[: n % 3 + 1]) for n in range(count)]


def four_jobs(base: Base) -> list[TrainingJob]:
    """Tasks that differ in kind, rank, layers, variant, batches and where they begin, all with dropout."""
    training = {"steps": 50, "learning_rate": 5e-3, "eval_every": 25}
    rows = {"batch_size": 3}
    return [
        make_job(
            base,
            toy_rows(40),
            toy_rows(8, seed=1),
            task="a",
            training=training | rows,
            lora={"rank": 4, "dropout": 0.2},
        ),
        make_job(
            base,
            answers(24),
            answers(5),
            task="b",
            kind="generation",
            training=training | {"batch_tokens": 24, "seed": 3},
            lora={"rank": 3, "dropout": 0.1, "variant": "rslora", "rank_pattern": {"q_proj": 5}},
        ),
        make_job(
            base,
            pairs_of(24),
            pairs_of(6),
            task="c",
            kind="embedding",
            training=training | rows,
            lora={"rank": 2, "dropout": 0.3, "layers": "top-2", "targets": ["q_proj", "up_proj"]},
        ),
        make_job(
            base,
            toy_rows(30, seed=4),
            toy_rows(8, seed=5),
            task="d",
            training=training | rows | {"steps": 30, "lora_plus": 4.0},
            lora={"rank": 6, "dropout": 0.5, "layers": "top-1", "init": "pissa"},
        ),
    ]


def trained(jobs: list[TrainingJob], progress: Recorder | None = None) -> list[Trained]:
    trainer = Trainer(jobs[0].base)
    outcomes = trainer.train(jobs, progress or Recorder())
    trainer.close()
    for outcome in outcomes:
        if not isinstance(outcome, Trained):
            raise outcome
    return outcomes  # type: ignore[return-value]


def compare(found: Trained, alone: Trained, tolerance: float) -> None:
    assert found.config == alone.config
    assert found.tensors.keys() == alone.tensors.keys()
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    assert [e.step for e in found.result.history] == [e.step for e in alone.result.history]
    assert [e.loss for e in found.result.history] == pytest.approx([e.loss for e in alone.result.history], rel=1e-9)


@pytest.mark.usefixtures("double")
def test_tasks_learn_side_by_side_what_each_learns_alone(tmp_path: Path) -> None:
    jobs = four_jobs(tiny_base(tmp_path))
    # The same layers as the last one, and other texts.
    other = replace(jobs[3], train=toy_rows(30, seed=9), validation=toy_rows(8, seed=8))
    jobs.append(replace(other, recipe=other.recipe.model_copy(update={"task": "e"})))
    together = {}
    for chosen in ((3, 4), (0, 1), (0, 1, 2, 3)):
        progress = Recorder()
        together[chosen] = trained([jobs[i] for i in chosen], progress)
        assert {len(progress.steps_of[jobs[i].recipe.task]) - jobs[i].recipe.training.steps for i in chosen} == {0}
    alone = [trained([job])[0] for job in jobs]
    for chosen, outcomes in together.items():
        for i, found in zip(chosen, outcomes, strict=True):
            compare(found, alone[i], 1e-9)
            assert found.result.steps == jobs[i].recipe.training.steps


def round_weights(job: TrainingJob) -> None:
    """Have all weights of a job's base be bfloat16, so that they are kept and multiplied so."""
    file = job.base.path / "model.safetensors"
    save_file({name: each.bfloat16().float() for name, each in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_task_that_is_broken_leaves_the_others_as_they_are_bit_for_bit(
    tmp_path: Path, broken: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, "classification")
    if plain:
        for name in ("attention", "norm", "gated"):
            monkeypatch.setattr(f"adapterhub.native.{name}.native", lambda: None)
    else:
        round_weights(job)
    network = PackedNetwork(job.base, "float32", CPU)
    kinds = ("classification", "generation", "embedding")
    jobs = [job, *(job_of(tmp_path / kind, kind) for kind in kinds[1:])]

    def gradients(value: float | None) -> list[dict[str, Tensor]]:
        learners = [network.learner(each) for each in jobs]
        for each in learners:
            randomised(each)
        if value is not None:
            with torch.no_grad():
                for tensor in learners[broken].saved().values():
                    tensor.flatten()[::3] = value
            learners[broken].refresh()
        turns = [
            turn_of(each, objective_for(kind), rows_of(kind))  # type: ignore[arg-type]
            for each, kind in zip(learners, kinds, strict=True)
        ]
        losses = network.learn(turns)
        found = [
            packed_gradients(each) | {"loss": torch.tensor(loss)} for each, loss in zip(learners, losses, strict=True)
        ]
        if value is not None:
            assert not found[broken]["loss"].isfinite()
        return found

    whole = gradients(None)
    for value in (torch.inf, torch.nan):
        for i, (found, expected) in enumerate(zip(gradients(value), whole, strict=True)):
            if i != broken:
                assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_ranks_may_be_given_by_whole_names_as_peft_has_them(tmp_path: Path) -> None:
    pattern = {"model.layers.1.mlp.up_proj": 2}
    agree(job_of(tmp_path, "classification", lora={"rank": 4, "rank_pattern": pattern}))
    _, learner = packed_of(job_of(tmp_path, "generation", lora={"rank": 4, "rank_pattern": pattern}))
    ranks = {site.module: site.rank for site in learner.adapter.sites}
    assert {name for name, rank in ranks.items() if rank == 2} == {"layers.1.mlp.up_proj"}


def test_the_first_of_several_ranks_is_the_first_in_the_file(tmp_path: Path) -> None:
    pattern = {"q_proj": 2, "layers.1.self_attn.q_proj": 7}
    _, learner = packed_of(job_of(tmp_path, "classification", lora={"rank": 4, "rank_pattern": pattern}))
    stored = json.loads(learner.config.to_json())["rank_pattern"]
    assert list(learner.config.rank_pattern.items()) == list(stored.items()) == sorted(pattern.items())
    ranks = {site.module: site.rank for site in learner.adapter.sites}
    assert [ranks[f"layers.{i}.self_attn.q_proj"] for i in range(3)] == [2, 7, 2]


@pytest.mark.parametrize(
    "pattern", [{"qproj": 2}, {"layers.7.mlp.up_proj": 2}, {"proj": 2}, {"q_proj": 2, "self_attn.q_proj": 3}]
)
def test_a_rank_for_no_module_is_refused(tmp_path: Path, pattern: dict[str, int]) -> None:
    job = job_of(tmp_path, "classification", lora={"rank_pattern": pattern})
    for network in (packed_of, peft_of):
        with pytest.raises(
            ConfigError, match=rf"lora\.rank_pattern: '{[*pattern][-1]}' gives no .*layers\.0\.self_attn"
        ):
            network(job)


def test_labels_are_those_of_the_job(tmp_path: Path) -> None:
    job = job_of(tmp_path, "classification")
    _, learner = packed_of(job)
    assert learner.adapter.head is not None
    assert learner.adapter.head.shape == (len(COLOURS), 32)
    assert learner.pooling == "last"


def test_an_embedding_learns_from_all_rows_of_a_batch_that_takes_several_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, "embedding", lora={"dropout": 0.3})
    objective, rows = objective_for("embedding"), rows_of("embedding")
    found = []
    for tokens in (1024, 20):
        monkeypatch.setattr("adapterhub.training.packed.network.LINE_TOKENS", tokens)
        network, learner = packed_of(job)
        randomised(learner)
        learner.adapter.dropout = 0.0
        found.append((network.learn([turn_of(learner, objective, rows)]), packed_gradients(learner)))
        judged = network.judge(learner, objective, rows)
        assert judged.loss / judged.share == pytest.approx(found[0][0][0], rel=1e-5)
    (whole, gradients), (cut, others) = found
    assert cut == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    # With dropout, what the gradients are of is what the loss was of.
    learner.adapter.dropout = 0.3
    learner.clear()
    state = learner.random_state()
    first = network.learn([turn_of(learner, objective, rows)])
    learner.set_random_state(state)
    assert network.learn([turn_of(learner, objective, rows)]) == first


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_kept_in_bfloat16_are_multiplied_as_they_are(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are all bfloat16 are packed; with and without kernels of our own the gradients are the same."""
    job = job_of(tmp_path, "classification", family)
    round_weights(job)
    objective, rows = objective_for("classification"), rows_of("classification")
    found = []
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr("adapterhub.training.packed.frozen.pack_product", lambda weight: None)
        network, learner = packed_of(job)
        randomised(learner)
        found.append((network.learn([turn_of(learner, objective, rows)]), packed_gradients(learner)))
        for layer in range(network.decoder.depth):
            for stack in network.decoder.stacks(layer):
                assert torch.equal(stack.weight.bfloat16().float(), stack.weight)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_vectors_are_pooled_as_the_general_network_pools_them(tmp_path: Path, pooling: Any) -> None:
    job, rows, objective = job_of(tmp_path, "embedding"), rows_of("embedding"), objective_for("embedding")
    network, learner = packed_of(job)
    reference, peft = peft_of(job)
    randomised(learner)
    randomised(peft, learner)
    learner.pooling = pooling
    object.__setattr__(peft, "pooling", pooling)
    found, wanted = (net.judge(one, objective, rows) for net, one in ((network, learner), (reference, peft)))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-4)


def test_a_base_in_bfloat16_keeps_what_learns_in_float32(tmp_path: Path) -> None:
    job, rows, objective = job_of(tmp_path, KINDS[0]), rows_of(KINDS[0]), objective_for(KINDS[0])
    whole, low = PackedNetwork(job.base, "float32", CPU), PackedNetwork(job.base, "bfloat16", CPU)
    found = []
    for network in (whole, low):
        learner = network.learner(job)
        randomised(learner)
        assert all(p.dtype == torch.float32 for p in learner.parameters().values())
        for _ in range(2):  # they add up, whatever they are added up in
            network.learn([turn_of(learner, objective, rows)])
        found.append(packed_gradients(learner))
        assert {tensor.dtype for tensor in learner.saved().values()} == {torch.float32}
    for name, gradient in found[0].items():
        assert float((found[1][name] - gradient).norm() / gradient.norm()) < 0.2, name
    together = [torch.cat([each.flatten() for each in gradients.values()]) for gradients in found]
    assert float((together[1] - together[0]).norm() / together[0].norm()) < 0.1


def test_in_bfloat16_the_network_sees_changed_parameters_once_it_is_told(tmp_path: Path) -> None:
    job, rows, objective = job_of(tmp_path, KINDS[0]), rows_of(KINDS[0]), objective_for(KINDS[0])
    network = PackedNetwork(job.base, "bfloat16", CPU)
    learner = network.learner(job)
    before = network.judge(learner, objective, rows).loss
    with torch.no_grad():
        learner.adapter.b.normal_(0.0, 0.3)
    assert network.judge(learner, objective, rows).loss == before
    learner.refresh()
    assert network.judge(learner, objective, rows).loss != before
