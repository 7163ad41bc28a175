"""Trainings of tiny bases in processes of their own, which may be killed at any step, or take part in one of many.

A fork server holds what is imported, so that each process starts in no time, and none has computed anything before.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import adapterhub.training.checkpoint
import adapterhub.training.loop
from adapterhub.base.source import open_base
from adapterhub.training.job import StepReport, TrainingJob
from adapterhub.training.train import Trained, Trainer
from tests.training.jobs import Recorder, example, make_job, toy_rows

Family = Literal["llama", "gpt2"]


@dataclass(frozen=True)
class Plan:
    """What a process trains, where, and when it is killed.

    `kill` is ("step", n): as step n of a task is told; ("write", n): as the n-th checkpoint of the process is on the
    disk in part; ("replaced", n): as it has just taken the place of the one before.
    """

    base: Path
    folder: Path
    out: Path
    tasks: tuple[str, ...] = ("a",)
    resume: bool = False
    kill: tuple[str, int] | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    """Of the training settings, and `dropout`."""


def jobs_of(plan: Plan) -> list[TrainingJob]:
    """Classification "a" and generation "b", both with dropout, whose batches do not fill an epoch evenly."""
    base = open_base(str(plan.base), cache=plan.folder / "bases")
    changes = dict(plan.changes)
    dropout = changes.pop("dropout", 0.2)
    training = {"steps": 13, "batch_size": 4, "learning_rate": 5e-3, "eval_every": 4} | changes
    letters = [example(f"f:{n}", prompt="ab" * (n % 3 + 1), completion="xyz"[: n % 3 + 1]) for n in range(11)]
    jobs = {
        "a": make_job(
            base, toy_rows(26), toy_rows(6, seed=1), task="a", training=training, lora={"rank": 4, "dropout": dropout}
        ),
        "b": make_job(
            base,
            letters,
            letters[:3],
            task="b",
            kind="generation",
            training=training | {"steps": 9, "seed": 5},
            lora={"rank": 2, "dropout": dropout},
        ),
    }
    return [jobs[name] for name in plan.tasks]


class _Killed(Recorder):
    def __init__(self, step: int | None) -> None:
        super().__init__()
        self._at = step

    def step(self, task: str, report: StepReport) -> None:
        super().step(task, report)
        if report.step == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def train(plan: Plan, environment: dict[str, str]) -> None:
    """Train as planned, and write adapters and what was told to `plan.out`."""
    os.environ.update(environment)
    adapterhub.training.loop.SNAPSHOT_STEPS = 2
    adapterhub.training.loop.CHECKPOINT_SECONDS = 0.0
    where, count = plan.kill or ("", 0)
    if where in ("write", "replaced"):
        _kill_at(where, count)
    # What a process has drawn before is nobody's business.
    random.seed()
    progress = _Killed(count if where == "step" else None)
    jobs = jobs_of(plan)
    trainer = Trainer(jobs[0].base, "float32")
    outcomes = trainer.train(jobs, progress, plan.folder, resume=plan.resume)
    main = trainer.accelerator.is_main_process
    out = plan.out if main else plan.out.with_name(f"{plan.out.name}-{trainer.accelerator.process_index}")
    for job, outcome in zip(jobs, outcomes, strict=True):
        assert isinstance(outcome, Trained), outcome
        outcome.write(out / job.recipe.task)
    told = {
        "told": progress.told,
        "losses": {name: [each.loss for each in steps] for name, steps in progress.steps_of.items()},
        "validation": [each.loss for each, _ in progress.evaluations],
        "processes": trainer.accelerator.num_processes,
    }
    (out / "told.json").write_text(json.dumps(told))
    trainer.close()


def _kill_at(where: str, count: int) -> None:
    left = [count]

    def kill(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "write":

        def cut(descriptor: int) -> None:
            if left[0] == 1:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            kill()

        adapterhub.training.checkpoint.os.fsync = cut  # type: ignore[attr-defined]
    else:
        original = Path.replace

        def replace(self: Path, target: Any) -> Path:
            found = original(self, target)
            if "checkpoint" in Path(target).name:
                kill()
            return found

        Path.replace = replace  # type: ignore[method-assign, assignment]


def start(plan: Plan, **environment: str) -> BaseProcess:
    """Start a training in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train, args=(plan, {"OMP_NUM_THREADS": "1", **environment}))
    process.start()
    return process


def finish(processes: Sequence[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Wait for processes and return their exit codes; those that do not end are killed."""
    for process in processes:
        process.join(seconds)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def told(out: Path) -> Any:
    """Return what a training wrote of itself."""
    return json.loads((out / "told.json").read_text())
