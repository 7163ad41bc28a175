"""Small jobs for tests: a toy task, a recipe, a tiny base, and a progress that remembers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example, content_id
from adapterhub.data.task import PromptSpec, TaskSpec, task_kind
from adapterhub.recipe import LABELLED, Recipe
from adapterhub.training.job import Evaluation, StepReport, TrainingJob
from tests.tiny import CHAT_TEMPLATE, make_tiny_base

COLOURS = ("blue", "red")


def example(where: str = "toy.jsonl:1", **fields: Any) -> Example:
    """Return an example with these fields; weight and probs are set aside."""
    aside = {name: fields.pop(name) for name in ("weight", "probs") if name in fields}
    return Example(id=content_id(fields), fields=fields, where=where, **aside)


def toy_rows(count: int, seed: int = 0) -> list[Example]:
    """Return texts of 4 to 12 letters that are all x or y, labelled by which: easy to tell apart."""
    dice = random.Random(seed)
    rows = []
    for index in range(count):
        label = COLOURS[index % 2]
        letter = "x" if label == "red" else "y"
        text = "".join(dice.choice((letter, letter, "-")) for _ in range(dice.randint(4, 12)))
        rows.append(example(f"toy.jsonl:{index + 1}", text=letter + text, label=label))
    return rows


def tiny_base(folder: Path, family: str = "llama", **changes: Any) -> Base:
    """Make a tiny base below `folder` and open it with a cache of its own."""
    return open_base(str(make_tiny_base(folder / family, family, **changes)), cache=folder / "cache")


def make_recipe(kind: str = "classification", **changes: Any) -> Recipe:
    """Return a recipe for a toy task; `lora` and `training` are mappings."""
    record = {"task": "toy", "base": "tiny", "kind": kind, "data": {"train": "toy.jsonl"}, "path": Path("toy.yaml")}
    return Recipe.model_validate({**record, **changes})


def make_job(base: Base, train: list[Example], validation: list[Example] | None = None, **changes: Any) -> TrainingJob:
    """Return a job; `kind`, `labels` and `max_length` go to the spec, the rest to the recipe."""
    kind = changes.pop("kind", "classification")
    labels = changes.pop("labels", COLOURS if kind in LABELLED else ())
    style = changes.pop("style", "plain")
    prompt = PromptSpec("chat", chat_template=CHAT_TEMPLATE) if style == "chat" else PromptSpec()
    spec = TaskSpec(task_kind(kind), base.fingerprint, changes.pop("max_length", 128), labels, prompt)
    return TrainingJob(make_recipe(kind, **changes), base, spec, train, validation or [])


class Recorder:
    """Progress that remembers what it was told, of all tasks together and of each."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.steps: list[StepReport] = []
        self.steps_of: dict[str, list[StepReport]] = {}
        self.evaluations: list[tuple[Evaluation, bool]] = []

    def stage(self, message: str) -> None:
        self.told.append(message)

    def begin(self, task: str, steps: int) -> None:
        self.told.append(f"begin {steps}")

    def step(self, task: str, report: StepReport) -> None:
        self.steps.append(report)
        self.steps_of.setdefault(task, []).append(report)

    def evaluated(self, task: str, evaluation: Evaluation, *, best: bool) -> None:
        self.evaluations.append((evaluation, best))

    def end(self, task: str) -> None:
        self.told.append("end")
