"""Voters that say the same for another reason than the label: found, and given one vote together.

Label models take voters to be independent once the label is known. Copies (prompt variants on one base, rules on the
same word) break that: the model takes what the copies share for the label and ends below the majority vote. So first
a model of one number a voter is fitted to all pairs: a_i in [-1, 1], the part of i's votes that come from the label,
the rest being drawn regardless of it. Two voters then say a and b together more often than by chance by

    a_i a_j q_ia q_jb ([a = b] / p_a - 1)        q: how often the vote is cast, p: the balance

A pair that goes together more than that, by `EXCESS` in units of a correlation and beyond chance, is dependent. Which
voters to merge is not always clear from pairs: four copies look like four perfect voters beside three dependent ones.
So two ways are gone, the most alike first and the most in excess first, until no pair is in excess; the one is taken
that is likelier when accuracies are about 0.7, hardly ever near 1, and each merge has to be paid for. Where the two
are about as likely, or the most alike voters are taken for the best ones, that is a bet: `Clustering.doubtful` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapterhub.labeling.votes import NO_VOTE

from .majority import vote_counts
from .table import one_hot

EXCESS = 0.2
SAME = 0.98
_DEVIATIONS = 4.0
# Accuracies beforehand: Beta(7, 3), mean 0.7; what a merge costs and which difference leaves doubt, in nats.
_RIGHT, _WRONG = 7.0, 3.0
_MERGE, _DOUBT = 1.3, 2.0

Clusters = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Clustering:
    """Voters in `clusters`, each in its order, most alone in theirs; `doubtful` where `other` may as well be."""

    clusters: Clusters
    other: Clusters
    doubtful: bool


@dataclass(frozen=True, eq=False)
class Pairs:
    """How pairs of voters go together, float64 [voters, voters]: `alike` is a correlation of their one-hot votes.

    `excess` is what of it the one-number model does not explain, `sure` whether that is beyond chance; `strength`
    [voters] are the model's numbers and `accuracy` [voters] what they mean, NaN for voters without a vote.
    """

    alike: np.ndarray
    excess: np.ndarray
    sure: np.ndarray
    strength: np.ndarray
    accuracy: np.ndarray


def find_clusters(matrix: np.ndarray, balance: np.ndarray) -> Clustering:
    """Return which voters of votes int32 [rows, voters] depend on each other, given a `balance` [labels] above 0."""
    (alike, cost), (excess, other) = (_merged(matrix, balance, by_excess) for by_excess in (False, True))
    if set(alike) == set(excess):
        return Clustering(alike, excess, doubtful=False)
    if cost <= other:
        return Clustering(alike, excess, doubtful=other - cost < _DOUBT)
    # Taking the most alike voters for the best ones is a bet: nothing in their votes says that they are no copies.
    return Clustering(excess, alike, doubtful=True)


def cluster_votes(matrix: np.ndarray, clusters: Clusters, labels: int) -> np.ndarray:
    """Return one vote a cluster int32 [rows, clusters]: the majority of its voters, none where they tie."""
    columns = []
    for members in clusters:
        if len(members) == 1:
            columns.append(matrix[:, members[0]])
            continue
        counts = vote_counts(matrix[:, list(members)], labels)
        most = counts.max(axis=1)
        alone = (counts == most[:, None]).sum(axis=1) == 1
        columns.append(np.where((most > 0) & alone, counts.argmax(axis=1), NO_VOTE))
    return np.stack(columns, axis=1).astype(np.int32)


def measure_pairs(matrix: np.ndarray, balance: np.ndarray) -> Pairs:
    """Return how the voters of votes int32 [rows, voters] go together, two by two."""
    rows, voters = matrix.shape
    labels = len(balance)
    votes = one_hot(matrix, labels, abstain=False)
    often = np.asarray(votes.mean(axis=0)).reshape(-1)
    beyond = np.asarray((votes.T @ votes).todense()) / rows - np.outer(often, often)
    same = np.kron(np.ones((voters, voters)), np.eye(labels))
    units = np.sqrt(np.outer(often, often))
    told = units * (same / np.tile(balance, voters)[:, None] - 1)
    scaled = _ratio(beyond, units)
    information = _blocks(told**2, labels)
    shared = _ratio(_blocks(scaled * told, labels), information)
    strength = _strengths(shared, information)
    explained = np.outer(strength, strength)
    agreement = _blocks(beyond * same, labels)
    own = np.sqrt(np.maximum(agreement.diagonal(), 0))
    spread = np.outer(own, own)
    expected = explained * _blocks(told * units * same, labels)
    alike, excess = (_ratio(each, spread) for each in (agreement, agreement - expected))
    deviations = np.sqrt(rows * information) * (shared - explained)
    cast = often.reshape(voters, labels)
    total = cast.sum(axis=1)
    by_chance = np.divide(cast @ balance, total, out=np.full(voters, np.nan), where=total > 0)
    return Pairs(alike, excess, deviations > _DEVIATIONS, strength, strength + (1 - strength) * by_chance)


def _merged(matrix: np.ndarray, balance: np.ndarray, by_excess: bool) -> tuple[Clusters, float]:
    """Return the clusters of one way of merging, and minus the logarithm of how likely they are."""
    labels = len(balance)
    clusters: list[tuple[int, ...]] = [(voter,) for voter in range(matrix.shape[1])]
    while True:
        pairs = measure_pairs(cluster_votes(matrix, tuple(clusters), labels), balance)
        upper = np.triu(np.ones_like(pairs.alike, dtype=bool), 1)
        dependent = upper & pairs.sure & (pairs.excess > EXCESS) & (pairs.alike > EXCESS)
        equal = upper & (pairs.alike > SAME)
        if not (dependent.any() or equal.any()) or len(clusters) < 3:
            return tuple(clusters), _unlikely(pairs.accuracy) + _MERGE * (matrix.shape[1] - len(clusters))
        if equal.any() or not by_excess:
            best = np.where(upper, pairs.alike, -np.inf)
        else:
            best = np.where(dependent, pairs.excess, -np.inf)
        one, other = np.unravel_index(int(best.argmax()), best.shape)
        clusters[one] = tuple(sorted(clusters[one] + clusters[other]))
        del clusters[int(other)]


def _unlikely(accuracies: np.ndarray) -> float:
    """Return how far below its highest the prior of the accuracies is, in nats."""
    known = np.clip(accuracies[~np.isnan(accuracies)], 0.01, 0.99)
    mode = (_RIGHT - 1) / (_RIGHT + _WRONG - 2)
    below = (_RIGHT - 1) * np.log(mode / known) + (_WRONG - 1) * np.log((1 - mode) / (1 - known))
    return float(below.sum())


def _strengths(shared: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Return a [voters] such that a_i a_j is near `shared` off the diagonal, by coordinate descent."""
    voters = len(shared)
    weights = information * (1 - np.eye(voters))
    wanted = np.clip(shared, -1, 1)
    found = np.full(voters, 0.5)
    for _ in range(500):
        before = found.copy()
        for voter in range(voters):
            below = weights[voter] @ found**2
            if below > 0:
                found[voter] = np.clip(weights[voter] @ (wanted[voter] * found) / below, -1, 1)
        if np.abs(found - before).max(initial=0) < 1e-7:
            break
    return found


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, 0 where below is 0."""
    ratio: np.ndarray = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio


def _blocks(values: np.ndarray, labels: int) -> np.ndarray:
    """Return the sums of the blocks [voters, voters] of values [voters * labels, voters * labels]."""
    voters = len(values) // labels
    summed: np.ndarray = values.reshape(voters, labels, voters, labels).sum(axis=(1, 3))
    return summed
