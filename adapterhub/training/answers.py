"""What each row shall answer, as numbers, and whether that is something to learn; no torch, no tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from adapterhub.data.example import Example
from adapterhub.errors import ConfigError, DataError
from adapterhub.recipe import LABELLED, Kind, check_class_weights


def target_of(example: Example, kind: Kind, labels: Sequence[str]) -> tuple[float, ...]:
    """Return one number a label, from 0 to 1; none for kinds without labels.

    Raises DataError for a row without answer, or with one that is not among `labels`.
    """
    if kind not in LABELLED:
        return ()
    return class_target(example, labels) if kind == "classification" else multilabel_target(example, labels)


def check_learnable(targets: Sequence[tuple[float, ...]], kind: Kind, labels: Sequence[str]) -> None:
    """Raise DataError where there is nothing to learn from: no rows, or all of them with the same answer."""
    if not targets:
        raise DataError("there are no training rows; data.train needs some")
    if kind in LABELLED and len(set(targets)) < 2:
        given = [label for label, value in zip(labels, targets[0], strict=True) if value >= 0.5]
        raise DataError(
            f"all {len(targets)} training rows have the same answer, {', '.join(map(repr, given)) or 'no label'}; "
            "a classifier learns from at least two different ones, so add rows of other labels to data.train"
        )


def check_contrast(positives: Iterable[str | None]) -> None:
    """Raise DataError where all rows of an embedding task have one positive: no other text is there to lie far from."""
    found = set(positives)
    if len(found) == 1:
        raise DataError(
            f"all training rows have the same positive, {next(iter(found))!r}; an embedding is learnt from at least "
            "two different ones, so add rows of others to data.train"
        )


def class_factors(
    targets: Sequence[tuple[float, ...]], weights: Mapping[str, float] | str, labels: Sequence[str]
) -> list[float]:
    """Return what to multiply each row's weight by: its label's weight, or the mean of its labels' weights.

    `targets` are one number a label, and probabilities count as parts of a label. "balanced" gives a label that n_c of
    all n given labels are the weight n / (k · n_c), k being the labels that are given at all (King and Zeng, "Logistic
    regression in rare events data", 2001). A row without labels, and a label that no weight is named for, counts 1.
    Raises ConfigError for a weight of no label.
    """
    if isinstance(weights, Mapping):
        try:
            check_class_weights(weights, labels)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        by_label = [weights.get(label, 1.0) for label in labels]
    else:
        counts = [sum(column) for column in zip(*targets, strict=True)]
        total, given = sum(counts), sum(count > 0 for count in counts)
        by_label = [total / (given * count) if count else 1.0 for count in counts]
    return [
        sum(part * weight for part, weight in zip(target, by_label, strict=True)) / sum(target) if any(target) else 1.0
        for target in targets
    ]


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
