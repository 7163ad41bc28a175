"""Whether one system answers better than another, judged on the same rows.

What two systems get wrong together says nothing about which is better, so the rows are kept in pairs: differences of a
metric with a paired bootstrap interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; for F1 as in
Berg-Kirkpatrick, Burkett and Klein, "An empirical investigation of statistical significance in NLP", EMNLP 2012), and
McNemar's test of right and wrong answers in its exact form (McNemar, "Note on the sampling error of the difference
between correlated proportions or percentages", Psychometrika 12, 1947).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .scores import (
    Kind,
    both_f1,
    check_rows,
    evaluate,
    field_counts,
    is_match,
    label_counts,
    resamples,
    share,
)

# Metrics that are shares of right rows, and the 95% quantile of the normal distribution.
PROPORTIONS = ("accuracy", "exact_match")
_Z90 = 1.6448536269514722

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """How much higher the second system's metric is: `value` with its 95% interval, and the 5% lower bound `least`.

    "Not worse by more than m", at 5% error, is `least` >= -m (a one-sided test of non-inferiority).
    """

    value: float
    low: float
    high: float
    least: float

    def to_record(self) -> dict[str, float]:
        """Return the JSON record."""
        return {"value": self.value, "low": self.low, "high": self.high, "least": self.least}


@dataclass(frozen=True)
class McNemar:
    """`gained` rows only the second system has right, `lost` only the first; `p` is the exact two-sided p-value."""

    gained: int
    lost: int
    p: float

    def to_record(self) -> dict[str, float]:
        """Return the JSON record."""
        return {"gained": self.gained, "lost": self.lost, "p": self.p}


def is_right(kind: Kind, gold: Any, answer: Any) -> bool:
    """Say whether an answer to one row is right: the label, all labels and no other, the completion."""
    if kind == "multilabel":
        return set(gold) == set(answer)
    return bool(gold == answer) if kind == "classification" else is_match(gold, answer)


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> McNemar:
    """Compare which rows are right: where just one is, it is either with equal chance if both are as good."""
    check_rows(one, other)
    gained = sum(b and not a for a, b in zip(one, other, strict=True))
    lost = sum(a and not b for a, b in zip(one, other, strict=True))
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1))
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**count))


def differences(
    kind: Kind, gold: Sequence[Any], one: Sequence[Any], other: Sequence[Any], labels: Sequence[str] = ()
) -> dict[str, Difference]:
    """Return for each metric of `evaluate` how much better `other` is than `one`."""
    import numpy as np

    check_rows(gold, one)
    check_rows(gold, other)
    values = [evaluate(kind, gold, answers, labels) for answers in (one, other)]
    found: dict[str, Difference] = {}
    for name, (a, b) in _boots(kind, gold, one, other, labels):
        if name not in values[0]:
            continue  # fields are compared where all gold completions have some
        least, low, high = (float(each) for each in np.quantile(b - a, [0.05, 0.025, 0.975]))
        value = values[1][name].value - values[0][name].value
        if name in PROPORTIONS:
            right = [[is_right(kind, w, g) for w, g in zip(gold, each, strict=True)] for each in (one, other)]
            least = paired_bound(right[0], right[1])
        found[name] = Difference(value, min(low, value), max(high, value), min(least, value))
    return {name: found[name] for name in values[0]}


def paired_bound(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Return the 5% lower bound of how much more often `other` is right, which says little where rows are few.

    The hybrid score interval of paired proportions: Newcombe, "Improved confidence intervals for the difference between
    binomial proportions based on paired data", Statistics in Medicine 17 (1998), method 8. Unlike a bootstrap it has
    width where no row was lost.
    """
    check_rows(one, other)
    rows = len(one)
    both = sum(a and b for a, b in zip(one, other, strict=True))
    lost = sum(a and not b for a, b in zip(one, other, strict=True))
    gained = sum(b and not a for a, b in zip(one, other, strict=True))
    neither = rows - both - lost - gained
    before, after = share(both + lost, rows, _Z90), share(both + gained, rows, _Z90)
    spread = (both + lost) * (neither + gained) * (both + gained) * (neither + lost)
    phi = (both * neither - lost * gained) / math.sqrt(spread) if spread else 0.0
    down, up = after.value - after.low, before.high - before.value
    return after.value - before.value - math.sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))


def _boots(
    kind: Kind, gold: Sequence[Any], one: Sequence[Any], other: Sequence[Any], labels: Sequence[str]
) -> Iterator[tuple[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Yield (metric, its values of both systems over the same resamples)."""
    import numpy as np

    both = (one, other)
    if kind != "multilabel":
        name = "accuracy" if kind == "classification" else "exact_match"
        right = [np.array([is_right(kind, w, g) for w, g in zip(gold, each, strict=True)], np.float64) for each in both]
        means = [np.concatenate([weights @ each for weights in resamples(len(gold))]) / len(gold) for each in right]
        yield name, (means[0], means[1])
    if kind == "generation":
        counts = [field_counts(gold, each) for each in both]
        micro = [np.concatenate([both_f1(w @ h, w @ s)[0] for w in resamples(len(gold))]) for h, s in counts]
        yield "field_f1", (micro[0], micro[1])
        return
    sets = [[_as_set(kind, answer) for answer in answers] for answers in (gold, *both)]
    found = []
    # The same labels for both, or a label that only one of them gives would count for that one alone.
    names = sorted(set(labels) or {label for rows in sets for row in rows for label in row})
    for answers in sets[1:]:
        hits, support = label_counts(sets[0], answers, names)
        found.append([both_f1(weights @ hits, weights @ support) for weights in resamples(len(gold))])
    for index, name in enumerate(("micro_f1", "macro_f1")):
        if kind == "multilabel" or name == "macro_f1":
            a, b = (np.concatenate([block[index] for block in each]) for each in found)
            yield name, (a, b)


def _as_set(kind: Kind, answer: Any) -> tuple[str, ...]:
    if kind == "multilabel":
        return tuple(answer)
    return () if answer is None else (answer,)
