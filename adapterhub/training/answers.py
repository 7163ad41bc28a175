"""What each row shall answer, as numbers, and whether that is something to learn; no torch, no tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapterhub.data.example import Example
from adapterhub.data.task import Kind
from adapterhub.errors import DataError


def target_of(example: Example, kind: Kind, labels: Sequence[str]) -> tuple[float, ...]:
    """Return one number a label, from 0 to 1; none for generation.

    Raises DataError for a row without answer, or with one that is not among `labels`.
    """
    if kind == "generation":
        return ()
    return class_target(example, labels) if kind == "classification" else multilabel_target(example, labels)


def check_learnable(targets: Sequence[tuple[float, ...]], kind: Kind, labels: Sequence[str]) -> None:
    """Raise DataError where there is nothing to learn from: no rows, or all of them with the same answer."""
    if not targets:
        raise DataError("there are no training rows; data.train needs some")
    if kind != "generation" and len(set(targets)) < 2:
        given = [label for label, value in zip(labels, targets[0], strict=True) if value >= 0.5]
        raise DataError(
            f"all {len(targets)} training rows have the same answer, {', '.join(map(repr, given)) or 'no label'}; "
            "a classifier learns from at least two different ones, so add rows of other labels to data.train"
        )


def class_target(example: Example, labels: Sequence[str]) -> tuple[float, ...]:
    """Return the probability of each label: the example's `probs` where it has them, else its label alone."""
    if example.probs:
        _known(example.probs, labels, example)
        return tuple(float(example.probs.get(label, 0.0)) for label in labels)
    if example.label is None:
        raise DataError(f"{example.where}: no label to learn from; add the field label, or probs")
    _known([example.label], labels, example)
    return tuple(float(label == example.label) for label in labels)


def multilabel_target(example: Example, labels: Sequence[str]) -> tuple[float, ...]:
    """Return for each label how true it is: the example's `probs` where it has them, else 1 for each it carries."""
    if example.probs:
        _known(example.probs, labels, example)
        return tuple(float(example.probs.get(label, 0.0)) for label in labels)
    if example.labels is None:
        raise DataError(f"{example.where}: no labels to learn from; add the field labels, a list that may be empty")
    _known(example.labels, labels, example)
    return tuple(float(label in example.labels) for label in labels)


def _known(names: Iterable[str], labels: Sequence[str], example: Example) -> None:
    for name in names:
        if name not in labels:
            raise DataError(
                f"{example.where}: label {name!r} occurs in no training row; the labels are {', '.join(labels)}"
            )
