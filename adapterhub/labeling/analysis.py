"""What voters do: how much they cover, overlap and contradict each other, how good they are, who copies whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterhub.metrics import Metric, share

from .label_model import LabelFit, accuracy_intervals
from .label_model.dependence import measure_pairs
from .label_model.majority import near_constant, vote_counts
from .votes import NO_VOTE


@dataclass(frozen=True)
class VoterReport:
    """One voter: shares of all rows it votes on, on which another does too, and on which another says otherwise.

    `polarity` counts its votes by label; `accuracy` is the label model's estimate (None: it never votes), `empirical`
    that on `dev_rows` rows with gold labels.
    """

    name: str
    votes: int
    coverage: float
    overlap: float
    conflict: float
    polarity: Mapping[str, int]
    near_constant: bool
    accuracy: Metric | None
    empirical: Metric | None
    dev_rows: int
    copies: tuple[str, ...]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {
            "votes": self.votes,
            "coverage": self.coverage,
            "overlap": self.overlap,
            "conflict": self.conflict,
            "polarity": dict(self.polarity),
            "near_constant": self.near_constant,
            "accuracy": None if self.accuracy is None else self.accuracy.to_record(),
            "empirical": None if self.empirical is None else {**self.empirical.to_record(), "rows": self.dev_rows},
            "copies": list(self.copies),
        }


@dataclass(frozen=True, eq=False)
class VotesReport:
    """What was found of all voters together.

    `dev` holds the accuracy of label model and majority vote on the `dev_rows` rows with a vote and a gold label,
    `by_votes` says how many rows have 0, 1, 2, … votes; `alike` float64 [voters, voters] is the correlation of
    votes.
    """

    fit: LabelFit
    voters: tuple[VoterReport, ...]
    coverage: float
    overlap: float
    conflict: float
    by_votes: tuple[int, ...]
    uncovered: tuple[str, ...]
    alike: np.ndarray
    dev: Mapping[str, Metric]
    dev_rows: int

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        fit = self.fit
        return {
            "rows": len(fit.votes.ids),
            "labels": list(fit.votes.labels),
            "coverage": self.coverage,
            "overlap": self.overlap,
            "conflict": self.conflict,
            "rows_by_votes": list(self.by_votes),
            "uncovered": len(self.uncovered),
            "uncovered_ids": list(self.uncovered),
            "model": fit.model,
            "why": fit.why,
            "balance": dict(zip(fit.votes.labels, map(float, fit.balance), strict=True)),
            "balance_source": fit.balance_source,
            "majority_differs": float(fit.differs.mean()),
            "clusters": fit.merged,
            "clusters_in_doubt": fit.clustering.doubtful,
            "near_constant": [each.name for each in self.voters if each.near_constant],
            "silent": [each.name for each in self.voters if not each.votes],
            "voters": {each.name: each.to_record() for each in self.voters},
            "dev": {"rows": self.dev_rows, **{name: each.to_record() for name, each in self.dev.items()}}
            if self.dev_rows
            else None,
        }


def analyse(fit: LabelFit, gold: Mapping[int, str] | None = None) -> VotesReport:
    """Return what the voters of a fit do; `gold` gives the true label of some rows, by their place.

    Estimated accuracies have the intervals of `accuracy_intervals`, those on gold labels Wilson's, of 95%.
    """
    votes = fit.votes
    matrix = votes.matrix
    cast = matrix != NO_VOTE
    many = cast.sum(axis=1)
    counts = vote_counts(matrix, len(votes.labels))
    contradicted = (counts > 0).sum(axis=1) > 1
    known = np.full(len(votes.ids), NO_VOTE)
    for row, label in (gold or {}).items():
        known[row] = votes.labels.index(label) if label in votes.labels else len(votes.labels)
    limits = accuracy_intervals(fit)
    constant = near_constant(matrix, len(votes.labels))
    copies = {name: tuple(other for other in each if other != name) for each in fit.merged for name in each}
    voters = []
    for place, name in enumerate(votes.voters):
        column, says = matrix[:, place], cast[:, place]
        polarity = np.bincount(column[says], minlength=len(votes.labels))
        judged = says & (known != NO_VOTE)
        rows = int(judged.sum())
        estimate = float(fit.accuracy[place])
        voters.append(
            VoterReport(
                name=name,
                votes=int(says.sum()),
                coverage=float(says.mean()),
                overlap=float((says & (many > 1)).mean()),
                conflict=float((says & contradicted).mean()),
                polarity={label: int(n) for label, n in zip(votes.labels, polarity, strict=True) if n},
                near_constant=bool(constant[place]),
                accuracy=None if np.isnan(estimate) else Metric(estimate, *map(float, limits[place])),
                empirical=share(int((column[judged] == known[judged]).sum()), rows) if rows else None,
                dev_rows=rows,
                copies=copies.get(name, ()),
            )
        )
    told = (known != NO_VOTE) & (many > 0)
    return VotesReport(
        fit=fit,
        voters=tuple(voters),
        coverage=float((many > 0).mean()),
        overlap=float((many > 1).mean()),
        conflict=float(contradicted.mean()),
        by_votes=tuple(map(int, np.bincount(many))),
        uncovered=tuple(votes.ids[row] for row in np.flatnonzero(many == 0)),
        alike=measure_pairs(matrix, fit.balance).alike,
        dev=_dev(fit, known, told) if told.any() else {},
        dev_rows=int(told.sum()),
    )


def _dev(fit: LabelFit, known: np.ndarray, told: np.ndarray) -> dict[str, Metric]:
    """Return how often the label model and the majority vote are right; a tie counts as its first label."""
    best = {"label_model": fit.best, "majority": fit.majority.argmax(axis=1)}
    return {name: share(int((each[told] == known[told]).sum()), int(told.sum())) for name, each in best.items()}
