"""Both networks with learners on them, for tests: rows of every kind, and gradients under one name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterhub.training.general import GeneralNetwork, PeftLearner, build_learner
from adapterhub.training.job import TrainingJob
from adapterhub.training.learner import Turn
from adapterhub.training.objectives import Objective
from adapterhub.training.packed.network import PackedLearner, PackedNetwork
from adapterhub.training.rows import Row, batch_of
from tests.training.jobs import COLOURS, make_job, tiny_base, toy_rows

CPU = torch.device("cpu")
KINDS = ("classification", "multilabel", "generation", "preference", "embedding")
FAMILIES = ("llama", "mistral", "qwen2")


def rows_of(kind: str) -> list[Row]:
    """Rows of several lengths, some of which begin alike; one has a weight of its own."""
    starts = [(11, 12, 13), (11, 12, 13), (11, 12, 14, 15), (20,), tuple(range(30, 52)), (11, 12, 13, 16, 17)]
    rows = []
    for i, ids in enumerate(starts):
        weight = 0.5 if i == 2 else 1.0
        if kind in ("classification", "multilabel"):
            target = (0.25, 0.75) if i == 4 else (float(i % 2), 1.0 - i % 2)
            rows.append(Row((*ids, 60 + i), len(ids) + 1, target, weight, ""))
        elif kind == "generation":
            rows.append(Row((*ids, 70 + i, 71, 2), len(ids), (), weight, ""))
        elif kind == "preference":
            other = Row((*ids, 80 + i, 2), len(ids), (-3.0 - i,), weight, "")
            rows.append(Row((*ids, 70 + i, 71, 2), len(ids), (-4.0,), weight, "", (other,)))
        else:
            others = tuple(Row((90 + i, *ids[:j], 3), 3, (), weight, "") for j in ((1, 2) if i % 2 else (2,)))
            rows.append(Row((*ids, 100 + i), len(ids), (), weight, "", others))
    return rows


def job_of(folder: Path, kind: str, family: str = "llama", **changes: Any) -> TrainingJob:
    labelled = kind in ("classification", "multilabel")
    served = "generation" if kind == "preference" else kind
    job = make_job(tiny_base(folder, family), toy_rows(4), kind=served, labels=COLOURS if labelled else (), **changes)
    return replace(job, recipe=job.recipe.model_copy(update={"kind": kind}))


def randomised(learner: PackedLearner | PeftLearner, other: PackedLearner | PeftLearner | None = None) -> None:
    """Give a learner weights that do something, or another's."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        given = {} if other is None else other.saved()
        for name, tensor in sorted(learner.saved().items()):
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.2
            tensor.copy_(given[name] if other is not None else drawn)
    learner.refresh()


def packed_of(job: TrainingJob) -> tuple[PackedNetwork, PackedLearner]:
    network = PackedNetwork(job.base, "float32", CPU)
    return network, network.learner(job)


def peft_of(job: TrainingJob) -> tuple[GeneralNetwork, PeftLearner]:
    learner = build_learner(job, 0, 64, CPU)
    return GeneralNetwork(learner, 0, 8, CPU), learner


def turn_of(learner: Any, objective: Objective, rows: list[Row]) -> Turn:
    return Turn(learner, objective, rows, float(objective.share(batch_of(rows, CPU))))


def peft_gradients(learner: PeftLearner) -> dict[str, Tensor]:
    return {
        name.replace(".default", "").replace("modules_to_save.", ""): p.grad
        for name, p in learner.parameters().items()
        if p.grad is not None
    }


def packed_gradients(learner: PackedLearner) -> dict[str, Tensor]:
    """The gradients under PEFT's names, read by exchanging parameters and gradients."""
    adapter = learner.adapter
    kept = {name: (p.detach().clone(), p.grad.clone()) for name, p in adapter.parameters().items()}
    with torch.no_grad():
        for name, parameter in adapter.parameters().items():
            parameter.copy_(kept[name][1])
        found = {name: tensor.clone() for name, tensor in learner.saved().items()}
        for name, parameter in adapter.parameters().items():
            parameter.copy_(kept[name][0])
    return found
