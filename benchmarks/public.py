"""Recipes of public data sets and their rows, as text for this trainer and as token ids for others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.base.load import load_tokenizer
from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.data.task import TaskSpec
from adapterhub.data.tokens import encode_completion, encode_input
from adapterhub.pipeline.prepare import make_spec
from adapterhub.pipeline.splits import Splits, read_splits
from adapterhub.recipe import Recipe, load_recipe
from adapterhub.training.job import TrainingJob

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ADAPTERHUB_DATA", ROOT.parent / "shared" / "data"))


def load(name: str, overrides: Iterable[str]) -> Recipe:
    """Read a benchmark recipe with its data where $ADAPTERHUB_DATA says."""
    folder, file = DATA / name.split("-")[0], ROOT / "recipes" / "benchmarks" / f"{name}.yaml"
    data = [f"data.{split}={folder / f'{split}.jsonl'}" for split in ("train", "validation", "test")]
    data += [
        f"data.out_of_scope.{split}={folder / f'oos_{split}.jsonl'}" for split, _ in load_recipe(file).data.outside()
    ]
    return load_recipe(file, [*data, *overrides])


@dataclass(frozen=True)
class PublicTask:
    """A benchmark recipe with everything it names."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    base: Base
    spec: TaskSpec
    splits: Splits

    @classmethod
    def open(cls, name: str, overrides: Iterable[str] = ()) -> PublicTask:
        """Read a recipe's data and open its base."""
        recipe = load(name, overrides)
        base, splits = open_base(recipe.base_name), read_splits(recipe)
        return cls(name, tuple(overrides), recipe, base, make_spec(recipe, base, splits.labels), splits)

    def records(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Return each example as a worker is told it: all `ids`, where the answer `start`s, and its `label`'s index.

        Tokens are made by the rules of the task, so that everybody reads the same.
        """
        tokenizer = load_tokenizer(self.base, self.recipe.pad_token)
        found = []
        for example in examples:
            ids = encode_input(tokenizer, self.spec, example.fields)
            answer = encode_completion(tokenizer, example.completion or "") if self.spec.kind == "generation" else []
            label = self.spec.labels.index(str(example.label)) if self.spec.labels else None
            found.append({"ids": [*ids, *answer], "start": len(ids), "label": label})
        return found

    def job(self, rows: Sequence[int], overrides: Iterable[str] = ()) -> TrainingJob:
        """Return the job that learns from these rows of the training split, once each, and validates nothing."""
        recipe = load(self.name, [*self.overrides, *overrides, "training.epochs=1"])
        return TrainingJob(recipe, self.base, self.spec, [self.splits.train[row] for row in rows])
