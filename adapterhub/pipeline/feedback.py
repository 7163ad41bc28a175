"""Feedback as examples: what served answers should have been, some to learn from and some to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from adapterhub.data.example import Example, asked_of, content_id
from adapterhub.data.feedback import Feedback, latest
from adapterhub.data.rows import RowRules, to_example
from adapterhub.errors import DataError
from adapterhub.labeling.corrections import Correction
from adapterhub.recipe import Kind

HELD = 0.25


@dataclass(frozen=True)
class Lessons:
    """Rows of feedback on one task, to train on and to measure on; `skipped` says why others are neither."""

    learnt: Sequence[Example]
    held: Sequence[Example]
    skipped: Sequence[str]


def lessons(
    feedback: Iterable[Feedback], task: str, kind: Kind, labels: Collection[str] | None, share: float = HELD
) -> Lessons:
    """Return the last word on each input of `task`.

    About `share` of the inputs are held out to measure on, chosen by their hash: a row that was measured on once is
    never learnt from later, however much feedback comes. Answers that were right count too. With `labels`, rows whose
    label is none of them are skipped.
    """
    found: dict[str, Example] = {}
    skipped: list[str] = []
    for each in latest(iter(feedback)):
        if each.task != task:
            continue
        try:
            row = to_example(each.to_row(), RowRules(kind, labels), f"feedback {each.id}")
        except DataError as error:
            skipped.append(str(error))
            continue
        found[input_id(row, kind)] = row
    held = {identity for identity in found if _rank(identity) < share}
    return Lessons(
        [row for identity, row in found.items() if identity not in held],
        [row for identity, row in found.items() if identity in held],
        skipped,
    )


def with_lessons(train: Sequence[Example], learnt: Sequence[Example], kind: Kind) -> list[Example]:
    """Return training rows with what feedback says: rows of the same input are replaced, others come after."""
    said = {input_id(row, kind): row for row in learnt}
    known = set()
    rows = []
    for row in train:
        identity = input_id(row, kind)
        known.add(identity)
        rows.append(said.get(identity, row))
    return [*rows, *(row for identity, row in said.items() if identity not in known)]


def without(train: Sequence[Example], held: Sequence[Example], kind: Kind) -> list[Example]:
    """Return the rows whose input is none of those that are measured on."""
    kept = {input_id(row, kind) for row in held}
    return [row for row in train if input_id(row, kind) not in kept]


def input_id(row: Example, kind: Kind) -> str:
    """Return the hash of what a row asks, whatever its answer."""
    return content_id(asked_of(row, kind))


def _rank(identity: str) -> float:
    return int(hashlib.sha256(f"held:{identity}".encode()).hexdigest()[:8], 16) / 16**8


def as_corrections(feedback: Iterable[Feedback], task: str) -> tuple[list[Correction], list[str]]:
    """Return the last word on each input of a classification task as corrections, and why others make none."""
    found: dict[str, Correction] = {}
    skipped: list[str] = []
    for each in latest(iter(feedback)):
        if each.task != task:
            continue
        if each.kind != "classification":
            skipped.append(f"feedback {each.id} is on a {each.kind} task; corrections are of one label")
            continue
        try:
            row = to_example(each.to_row(), RowRules("classification"), f"feedback {each.id}")
        except DataError as error:
            skipped.append(str(error))
            continue
        identity = input_id(row, "classification")
        old, by = each.predicted.get("label"), each.key or "feedback"
        found[identity] = Correction(identity, old, str(row.label), by, each.at, row.text)
    return list(found.values()), skipped
