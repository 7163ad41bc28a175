"""Where there is a GPU: training and answering there are what they are on the CPU, by the same code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from adapterhub import AdapterHub, Output
from adapterhub.base.features import features
from adapterhub.base.load import load_backbone
from adapterhub.base.source import Base, open_base
from adapterhub.engine.engine import Engine
from adapterhub.registry.store import Registry
from adapterhub.training.general import GeneralNetwork, build_learner
from adapterhub.training.job import TrainingJob
from adapterhub.training.keeper import CHECKPOINTS
from adapterhub.training.objectives import objective_for
from adapterhub.training.packed.network import PackedNetwork
from adapterhub.training.train import Trained, Trainer
from tests.adapters import make_adapter
from tests.engine.support import Asked, adapter_of, finish
from tests.server.publishing import make_base, publish
from tests.training.jobs import Recorder, make_job, tiny_base, toy_rows
from tests.training.networks import (
    CPU,
    KINDS,
    job_of,
    packed_gradients,
    packed_of,
    peft_gradients,
    randomised,
    rows_of,
    turn_of,
)

FOUND = torch.accelerator.current_accelerator(check_available=True)
DEVICE = FOUND or CPU
pytestmark = pytest.mark.skipif(FOUND is None, reason="no accelerator here (CUDA, MPS or another)")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep trunks in a folder of the test's own, and train where there is an accelerator."""
    monkeypatch.setattr("adapterhub.training.train.cache_root", lambda: tmp_path / "kept")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def same(found: Tensor, expected: Tensor, name: str = "") -> None:
    scale = float(expected.abs().max())
    assert scale > 0, name
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=2e-4 * scale, msg=name)


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_the_packed_network(tmp_path: Path, kind: Any) -> None:
    job = job_of(tmp_path, kind)
    here, expected = packed_of(job)
    there = PackedNetwork(job.base, "float32", DEVICE)
    found = there.learner(job)
    randomised(expected)
    randomised(found, expected)
    rows, objective = rows_of(kind), objective_for(kind)
    (wanted,) = here.learn([turn_of(expected, objective, rows)])
    (loss,) = there.learn([turn_of(found, objective, rows)])
    assert loss == pytest.approx(wanted, rel=1e-4)
    gradients = packed_gradients(found)
    for name, gradient in packed_gradients(expected).items():
        same(gradients[name], gradient, name)
    assert there.judge(found, objective, rows).loss == pytest.approx(
        here.judge(expected, objective, rows).loss, rel=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_the_general_network(tmp_path: Path, kind: Any) -> None:
    job = job_of(tmp_path, kind, "gpt2", training={"precision": "float32"})
    expected, found = (build_learner(job, 0, 64, device) for device in (CPU, DEVICE))
    randomised(expected)
    randomised(found, expected)
    rows, objective = rows_of(kind), objective_for(kind)
    (wanted,) = GeneralNetwork(expected, 0, 8, CPU).learn([turn_of(expected, objective, rows)])
    (loss,) = GeneralNetwork(found, 0, 8, DEVICE).learn([turn_of(found, objective, rows)])
    assert loss == pytest.approx(wanted, rel=1e-4)
    gradients = peft_gradients(found)
    for name, gradient in peft_gradients(expected).items():
        same(gradients[name], gradient, name)


def trained(jobs: list[TrainingJob], folder: Path | None = None, *, resume: bool = False) -> list[Trained]:
    trainer = Trainer(jobs[0].base, "float32")
    assert trainer.accelerator.device.type == DEVICE.type
    outcomes = trainer.train(jobs, Recorder(), folder, resume=resume)
    trainer.close()
    for outcome in outcomes:
        if not isinstance(outcome, Trained):
            raise outcome
    return outcomes  # type: ignore[return-value]


def equal(found: Trained, expected: Trained) -> bool:
    return all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", {}),
        ("llama", {"layers": "top-1"}),
        ("qwen2", {"variant": "dora"}),
        ("gpt2", {"init": "pissa"}),
        ("bert", {}),
    ],
)
def test_a_task_is_learned_and_learned_again_the_same(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    training = {"steps": 60, "learning_rate": 1e-2, "batch_size": 8, "eval_every": 20, "precision": "float32"}
    base = tiny_base(tmp_path, family)
    job = make_job(base, toy_rows(60), toy_rows(20, seed=1), lora={"dropout": 0.1, **lora}, training=training)
    (first,), (second,) = trained([job]), trained([job])
    assert all(tensor.device == CPU for tensor in first.tensors.values())
    assert first.result.history[-1].value > 0.9
    assert equal(second, first)


def test_tasks_learn_side_by_side_and_go_on_from_checkpoints(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    training = {"steps": 20, "learning_rate": 5e-3, "batch_size": 4, "eval_every": 10, "precision": "float32"}
    jobs = [
        make_job(
            base, toy_rows(40, seed=n), toy_rows(8, seed=9), task=f"t{n}", lora={"dropout": 0.2}, training=training
        )
        for n in range(2)
    ]
    whole = trained(jobs, tmp_path / "whole")
    assert list((tmp_path / "whole").glob(CHECKPOINTS))
    again = trained(jobs, tmp_path / "whole", resume=True)
    alone = [trained([job])[0] for job in jobs]
    for found, resumed, one in zip(whole, again, alone, strict=True):
        assert equal(resumed, found)
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


# Answering


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert"])
def test_the_engine_answers_alike(tmp_path: Path, family: str, reference: bool) -> None:
    base = open_base(str(tiny_base(tmp_path, family).path), cache=tmp_path / "cache")
    kinds = [False, True] if family != "bert" else [True]
    found: list[list[Any]] = []
    folders = [make_adapter(base.path, tmp_path / f"a{n}", family, seed=n, labels=3 if n else None) for n in kinds]
    for device in ("cpu", str(DEVICE)):
        engine = Engine(load_backbone(base, torch.float32, device), 512, reference=reference)
        prompts = ([5, 6, 7, 8, 9], [40, 41], [100, 90, 80, 70, 60, 50, 40, 30, 20])
        asked = []
        for folder, labels in zip(folders, kinds, strict=True):
            adapter = adapter_of(folder, family, labels=labels)
            more: dict[str, Any] = {} if labels else {"max_tokens": 8, "logprobs": 3}
            asked += [Asked(prompt, adapter, **more) for prompt in prompts]
            if not labels:
                asked += [Asked(prompt, max_tokens=8) for prompt in prompts]
        finish(engine, *asked)
        found.append([item.tokens if item.request.sampling is not None else item.logits for item in asked])
    for one, other in zip(*found, strict=True):
        if isinstance(one, list):
            assert one == other
        else:
            torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def hubs(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[AdapterHub]]:
    scratch = tmp_path_factory.mktemp("registry")
    registry = Registry(scratch / "registry")
    for seed, (task, kind) in enumerate(
        [("tone", "classification"), ("topics", "multilabel"), ("writer", "generation"), ("search", "embedding")]
    ):
        publish(registry, base, task, scratch, kind=kind, seed=seed)
    with (
        AdapterHub(base, registry, precision="float32") as here,
        AdapterHub(base, registry, precision="float32", device=str(DEVICE)) as there,
    ):
        yield [here, there]


def test_every_kind_of_question_has_the_same_answer(hubs: list[AdapterHub]) -> None:
    texts = ["one", "another text", "one more, which is longer than the others"]
    for task in ("tone", "topics"):
        for one, other in zip(*(hub.predict(task, texts) for hub in hubs), strict=True):
            assert one.answer == other.answer
            assert one.logits == pytest.approx(other.logits, abs=1e-4)
    for given in ({}, {"temperature": 1.0, "seed": 3, "top_p": 0.9}):
        for one, other in zip(*(hub.predict("writer", texts, max_tokens=12, **given) for hub in hubs), strict=True):
            assert one.answer == other.answer
    for one, other in zip(*(hub.embed("search", texts) for hub in hubs), strict=True):
        torch.testing.assert_close(one.vector, other.vector, rtol=1e-4, atol=1e-4)
    for one, other in zip(*(hub.score("writer", "begin", texts) for hub in hubs), strict=True):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, rel=1e-4)


def test_an_answer_keeps_to_its_rule(hubs: list[AdapterHub]) -> None:
    rule = Output.choices(["yes", "no", "perhaps"])
    answers = [hub.predict("writer", ["well?"], max_tokens=12, output=rule)[0].answer for hub in hubs]
    assert answers[0] == answers[1]
    assert answers[0] in ("yes", "no", "perhaps")


def test_features_are_the_same(base: Base) -> None:
    here, there = (features(base, ["a text", "and another"], "mean", device=device) for device in ("cpu", DEVICE))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)
