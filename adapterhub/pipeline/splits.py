"""The examples of a recipe: which rows train, which validate, which test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub.data.example import Example, collect_labels
from adapterhub.data.files import read_examples
from adapterhub.data.split import hold_out
from adapterhub.recipe import LABELLED, Kind, Recipe
from adapterhub.registry.provenance import split_record
from adapterhub.registry.store import Registry

from .curated import curate
from .labelled import Tell, known_labels, labelling_of, make_labels

# What the rows of `data.out_of_scope` go by, in reports and on cards.
OUTSIDE = "out_of_scope"


@dataclass(frozen=True)
class Splits:
    """Examples a split, where each came from, and all labels in order.

    `held_out` says in words that validation was taken from train, and is empty where it has a file of its own.
    `outside` holds rows that have none of the labels, by the split they go with, validation or test. `labelling` says
    how the labels of train were made, where a program made them, and `curation` which of its rows were kept and why.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...]
    sources: dict[str, str]
    held_out: str = ""
    outside: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    labelling: Mapping[str, Any] = field(default_factory=dict)
    curation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> tuple[str, Sequence[Example]]:
        """The split that final metrics are measured on, test if there is one, and its rows."""
        return ("test", self.test) if self.test else ("validation", self.validation)

    @property
    def measured_outside(self) -> Sequence[Example]:
        """The rows out of scope that go with the split that is measured on."""
        return self.outside.get(self.measured[0], ())

    def to_record(self) -> dict[str, dict[str, Any]]:
        """Return name, rows and hash of each split, for the card."""
        rows = {"train": self.train, "validation": self.validation, "test": self.test}
        rows |= {outside_name(split): examples for split, examples in self.outside.items()}
        return {name: split_record(source, rows[name]) for name, source in self.sources.items()}


def read_splits(recipe: Recipe, registry: Registry | None = None, tell: Tell = lambda _: None) -> Splits:
    """Read all that `data` of a recipe names; without validation, hold rows of train out by the recipe's seed.

    Labels are the recipe's, else those of train. Where the recipe makes the labels of train, they are made here: its
    voters are asked, with adapters from `registry`; of the rows that are left to train on, those stay that the recipe
    keeps (`curate`). Raises FileMissing or DataError, the latter also for a label in
    another split that is not among them, and what `make_labels` raises.
    """
    labels = known_labels(recipe)
    train: Sequence[Example]
    if recipe.labelling is not None:
        made = make_labels(recipe, registry, tell)
        train, labelling = made.examples, made.labelling
    else:
        train = list(read_examples(recipe.resolve(recipe.data.train), recipe.kind, labels=labels))
        labelling = labelling_of(recipe)
    if labels is None:
        labels = collect_labels(train, recipe.kind) if recipe.kind in LABELLED else ()
    read = {
        name: list(read_examples(recipe.resolve(source), recipe.kind, labels=labels or None))
        for name, source in recipe.data.splits()
        if name != "train"
    }
    sources, held_out = dict(recipe.data.splits()), ""
    outside = {split: read_outside(recipe.resolve(source), recipe.kind) for split, source in recipe.data.outside()}
    sources |= {outside_name(split): source for split, source in recipe.data.outside()}
    if "validation" not in read:
        train, read["validation"] = held_out_of(train, recipe)
        sources["validation"], held_out = recipe.data.train, "held out of train"
    kept = curate(recipe, train, labels, tell)
    validation, test = read["validation"], read.get("test", ())
    return Splits(kept.examples, validation, test, labels, sources, held_out, outside, labelling, kept.curation)


def read_outside(path: Path, kind: Kind) -> list[Example]:
    """Read rows that have none of the task's labels; what they say of labels is left out. Raises as read_examples."""
    return [replace(row, fields=_unlabelled(row), probs=None) for row in read_examples(path, kind, labelled=False)]


def outside_name(split: str) -> str:
    """Return what the out-of-scope rows of a split are called, as in the recipe."""
    return f"{OUTSIDE}.{split}"


def _unlabelled(row: Example) -> dict[str, Any]:
    return {name: value for name, value in row.fields.items() if name != "label"}


def held_out_of(train: Sequence[Example], recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Return what of `train` is learnt from, and what validates, where the recipe names no validation data.

    Raises DataError where there are too few rows.
    """
    return hold_out(train, recipe.kind, seed=recipe.training.seed, template=recipe.prompt.template)
