"""One door to the label models: which one, with which balance, with copies merged, and what it thinks of each voter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapterhub.errors import UsageError
from adapterhub.labeling.votes import GOLD, NO_VOTE, Votes

from .dawid_skene import Fitted, balance_of_majority, dawid_skene
from .dependence import Clustering, cluster_votes, find_clusters
from .majority import majority, near_constant, vote_counts
from .metal import metal
from .table import Patterns, patterns_of, posterior

ModelKind = Literal["majority", "dawid-skene", "metal"]
MODELS: tuple[str, ...] = ("auto", "majority", "dawid-skene", "metal")
_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class LabelFit:
    """What a label model makes of `votes`, in the order of their rows, voters and labels.

    `probs` float64 [rows, labels] sum to 1 in each row; `best` int64 [rows] is the likeliest label, the first of those
    that tie; `tied`, `covered` and `trusted` bool [rows] say where labels tie, where any voter votes, and where a
    trusted voter did. `accuracy` [voters] is the mean probability of the votes a voter cast, NaN where it cast none.
    A model other than the majority's took one vote of each of `clusters`, and `balance_source` says where its balance
    is from.
    """

    votes: Votes
    model: ModelKind
    why: str
    probs: np.ndarray
    best: np.ndarray
    tied: np.ndarray
    covered: np.ndarray
    trusted: np.ndarray
    accuracy: np.ndarray
    majority: np.ndarray
    balance: np.ndarray
    balance_source: str
    clustering: Clustering
    gold: str | None
    fitted: Fitted | None

    @property
    def differs(self) -> np.ndarray:
        """Covered rows whose label the majority vote does not have among its most voted, bool [rows]."""
        on_top = self.majority >= self.majority.max(axis=1, keepdims=True) - _TIE
        different: np.ndarray = self.covered & ~on_top[np.arange(len(self.best)), self.best]
        return different

    @property
    def constant(self) -> list[str]:
        """The names of voters that give nearly all rows the same label; a trusted one is not looked at."""
        found = near_constant(self.votes.matrix, len(self.votes.labels))
        names = [name for name, each in zip(self.votes.voters, found, strict=True) if each]
        return [name for name in names if name != self.gold]

    @property
    def merged(self) -> list[list[str]]:
        """The names of voters that have one vote together."""
        return [[self.votes.voters[place] for place in each] for each in self.clustering.clusters if len(each) > 1]


def fit_votes(
    votes: Votes, model: str = "auto", balance: Mapping[str, float] | None = None, *, gold: str | None = None
) -> LabelFit:
    """Return what a label model makes of votes.

    "auto" takes MeTaL when the class balance is given, else Dawid-Skene, and the majority vote where votes leave open
    which voters are copies. `balance` gives each label its share; `gold` names a voter that is trusted outright
    (without it, one called "gold" is). Raises UsageError for an unknown model, a balance that is none, or votes for
    one label only.
    """
    if model not in MODELS:
        raise UsageError(f"there is no label model {model!r}; it may be {', '.join(MODELS)}")
    trusted = trusted_voter(votes, gold)
    given = None if balance is None else balance_of(balance, votes.labels)
    if not votes.labels:
        raise UsageError("no voter votes on any row, so there are no labels; name them with --labels or --balance")
    if len(votes.labels) < 2:
        raise UsageError(f"the only label is {votes.labels[0]!r}; name the others with --labels or --balance")
    return _fit(votes, _question(votes, trusted, given), model)


@dataclass(frozen=True, eq=False)
class _Question:
    """int32 `matrix` [rows, voters that are not trusted], `columns` says which of all voters these are.

    `known` int32 [rows] is what the trusted voter said, `given` the balance, if any, and `prior` what stands in for it.
    """

    matrix: np.ndarray
    columns: list[int]
    known: np.ndarray
    given: np.ndarray | None
    prior: np.ndarray
    trusted: str | None


@dataclass(frozen=True, eq=False)
class _Answer:
    probs: np.ndarray  # [patterns, labels]
    balance: np.ndarray
    source: str
    fitted: Fitted | None


def _fit(votes: Votes, asked: _Question, model: str) -> LabelFit:
    clustering = find_clusters(asked.matrix, asked.prior)
    kind, why = _choice(model, asked.given is not None, clustering)
    patterns = patterns_of(np.column_stack([asked.matrix, asked.known]))
    answer = _answer(asked, patterns, kind, clustering)
    probs = answer.probs[patterns.of_row]
    told = asked.known != NO_VOTE
    covered = (asked.matrix != NO_VOTE).any(axis=1) | told
    most = probs.max(axis=1, keepdims=True)
    plain = majority(asked.matrix, asked.prior)
    return LabelFit(
        votes=votes,
        model=kind,
        why=why,
        probs=probs,
        best=probs.argmax(axis=1),
        tied=covered & ((probs >= most - _TIE).sum(axis=1) > 1),
        covered=covered,
        trusted=told,
        accuracy=_accuracies(votes, asked, answer.probs, patterns),
        majority=np.where(told[:, None], probs, plain),
        balance=answer.balance,
        balance_source=answer.source,
        clustering=_named(clustering, asked.columns),
        gold=asked.trusted,
        fitted=answer.fitted,
    )


def accuracy_intervals(fit: LabelFit, resamples: int = 40, seed: int = 0) -> np.ndarray:
    """Return the 95% intervals of the estimated accuracies, float64 [voters, 2]: NaN where there is no accuracy.

    They are normal, from the spread over fits to resampled rows (Efron 1979), which voters are copies being left as
    it is. What they do not hold is how wrong the model itself may be.
    """
    asked = _question(fit.votes, fit.gold, fit.balance if fit.balance_source == "given" else None)
    patterns = patterns_of(np.column_stack([asked.matrix, asked.known]))
    places = {column: place for place, column in enumerate(asked.columns)}
    clusters = tuple(tuple(places[column] for column in each) for each in fit.clustering.clusters)
    clustering = Clustering(clusters, clusters, doubtful=False)
    draw = np.random.default_rng(seed)
    found = []
    heard = patterns.counts * patterns.covered
    if not heard.any():
        return np.full((len(fit.votes.voters), 2), np.nan)
    for _ in range(resamples):
        counts = draw.multinomial(int(heard.sum()), heard / heard.sum()).astype(np.float64)
        drawn = Patterns(patterns.votes, counts, patterns.of_row)
        answer = _answer(asked, drawn, fit.model, clustering)
        found.append(_accuracies(fit.votes, asked, answer.probs, drawn))
    drawn_accuracies = np.array(found)
    known = ~np.isnan(drawn_accuracies)
    counted = known.sum(axis=0)
    mean = np.where(known, drawn_accuracies, 0).sum(axis=0) / np.maximum(counted, 1)
    spread = np.sqrt((np.where(known, drawn_accuracies - mean, 0) ** 2).sum(axis=0) / np.maximum(counted - 1, 1))
    ends = fit.accuracy[:, None] + np.array([-1.96, 1.96]) * spread[:, None]
    limits: np.ndarray = np.clip(ends, 0, 1)
    return limits


def _question(votes: Votes, trusted: str | None, given: np.ndarray | None) -> _Question:
    columns = [place for place, name in enumerate(votes.voters) if name != trusted]
    matrix = votes.matrix[:, columns]
    known = np.full(len(votes.ids), NO_VOTE) if trusted is None else votes.matrix[:, votes.voters.index(trusted)]
    prior = balance_of_majority(patterns_of(matrix), len(votes.labels)) if given is None else given
    return _Question(matrix, columns, known, given, prior, trusted)


def _answer(asked: _Question, patterns: Patterns, kind: ModelKind, clustering: Clustering) -> _Answer:
    """Return what a model says of each pattern of the votes and, in the last column, of what is known."""
    matrix, known = patterns.votes[:, :-1], patterns.votes[:, -1]
    labels = len(asked.prior)
    if kind == "majority" or not (matrix != NO_VOTE).any():
        source = "majority vote" if asked.given is None else "given"
        answer = _Answer(majority(matrix, asked.prior), asked.prior, source, None)
    else:
        taken = cluster_votes(matrix, clustering.clusters, labels)
        heard = Patterns(taken, patterns.counts, patterns.of_row)
        answer = _modelled(kind, heard, asked.given, known, labels)
    probs = answer.probs
    probs[~(matrix != NO_VOTE).any(axis=1)] = answer.balance
    _side_with_unanimous(probs, matrix)
    told = known != NO_VOTE
    probs[told] = np.eye(labels)[known[told]]
    return answer


def _modelled(kind: ModelKind, heard: Patterns, given: np.ndarray | None, known: np.ndarray, labels: int) -> _Answer:
    source = "given" if given is not None else "estimated by Dawid-Skene"
    if kind == "metal" and given is not None:
        fitted = metal(heard, given)
    else:
        fitted = dawid_skene(heard, labels, given, known=known)
        if kind == "metal":
            fitted = metal(heard, fitted.balance)
    probs = posterior(heard.votes, fitted.balance, fitted.table, abstain=kind == "dawid-skene")
    return _Answer(probs, fitted.balance, source, fitted)


def _accuracies(votes: Votes, asked: _Question, probs: np.ndarray, patterns: Patterns) -> np.ndarray:
    """Return the mean probability of the votes that each voter cast [voters]."""
    found = np.full(len(votes.voters), np.nan)
    for place, column in zip(asked.columns, patterns.votes[:, :-1].T, strict=True):
        cast = np.flatnonzero((column != NO_VOTE) & (patterns.counts > 0))
        if len(cast):
            found[place] = np.average(probs[cast, column[cast]], weights=patterns.counts[cast])
    if asked.trusted is not None and (asked.known != NO_VOTE).any():
        found[votes.voters.index(asked.trusted)] = 1.0
    return found


def _choice(model: str, balanced: bool, clustering: Clustering) -> tuple[ModelKind, str]:
    if model == "majority":
        return "majority", "asked for"
    if model in ("dawid-skene", "metal"):
        return ("metal" if model == "metal" else "dawid-skene"), "asked for"
    if clustering.doubtful:
        return "majority", "the votes leave open which voters are copies"
    if balanced:
        return "metal", "the class balance is given"
    return "dawid-skene", "the class balance is not given"


def _side_with_unanimous(probs: np.ndarray, matrix: np.ndarray) -> None:
    """Give the label that two voters or more agree on, none against, at least half of the probability.

    A model may think otherwise, from the silence of others or a rare label; nobody would follow it.
    """
    counts = vote_counts(matrix, probs.shape[1])
    cast = counts.sum(axis=1)
    agreed = np.flatnonzero((cast > 1) & (counts.max(axis=1) == cast))
    wanted = counts[agreed].argmax(axis=1)
    against = agreed[probs[agreed].argmax(axis=1) != wanted]
    probs[against] = (probs[against] + np.eye(probs.shape[1])[counts[against].argmax(axis=1)]) / 2


def _named(clustering: Clustering, columns: list[int]) -> Clustering:
    """Return clusters of places among all voters, where they were among those that are not trusted."""
    one, other = (
        tuple(tuple(columns[place] for place in each) for each in clusters)
        for clusters in (clustering.clusters, clustering.other)
    )
    return Clustering(one, other, clustering.doubtful)


def trusted_voter(votes: Votes, gold: str | None) -> str | None:
    """Return the voter that is trusted outright: `gold`, else one of that name, if any.

    Raises UsageError for one that is not there, or is the only one.
    """
    if gold is not None and gold not in votes.voters:
        raise UsageError(f"there is no voter {gold!r} to trust; the voters are {', '.join(votes.voters)}")
    found = gold if gold is not None else GOLD if GOLD in votes.voters else None
    if found is not None and len(votes.voters) == 1:
        raise UsageError(f"{found!r} is the only voter; there is nothing to combine")
    return found


def balance_of(shares: Mapping[str, float], labels: tuple[str, ...]) -> np.ndarray:
    """Return a balance as float64 [labels]. Raises UsageError where it lacks a label, or does not sum to 1."""
    if missing := [name for name in labels if name not in shares]:
        raise UsageError(f"the balance says nothing of the label {missing[0]!r}; give each label its share")
    if others := [name for name in shares if name not in labels]:
        raise UsageError(f"the balance names {others[0]!r}; the labels are {', '.join(labels)}")
    values = np.array([shares[name] for name in labels], dtype=np.float64)
    if not (values > 0).all() or abs(values.sum() - 1) > 1e-3:
        shown = ", ".join(f"{name}={shares[name]:g}" for name in labels)
        raise UsageError(f"the balance is {shown}; shares are above 0 and sum to 1")
    normal: np.ndarray = values / values.sum()
    return normal
