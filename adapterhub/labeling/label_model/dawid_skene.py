"""The model of Dawid and Skene, with the abstain as a symbol like any other.

Dawid and Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied Statistics 28
(1979). It begins at the votes' shares and draws nothing at random. Leaving abstains out of the likelihood is what
loses: when a voter keeps silent says much of the label.

Of votes that a voter casts where no other votes, the likelihood knows nothing: it would take such a voter to be as
good as where others contradict it. So each table is that of the maximum by the part of the votes that are not alone,
and by the other part that of a voter who is right 70% of the time; the balance likewise, with that of the majority.
Rules that hardly overlap so stay near the majority vote, and voters who always vote are judged by the likelihood
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapterhub.labeling.votes import NO_VOTE

from .majority import majority, near_constant, vote_share
from .table import LEAST, PRIOR_ROWS, Patterns, cast_rates, expected_table, lone_shares, normalised, one_hot

_MOST_STEPS = 5000
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a model found: the balance [labels], the table [voters, labels, labels + 1], in how many steps."""

    balance: np.ndarray
    table: np.ndarray
    steps: int
    converged: bool


def dawid_skene(
    patterns: Patterns,
    labels: int,
    balance: np.ndarray | None = None,
    *,
    known: np.ndarray | None = None,
) -> Fitted:
    """Return the likeliest tables by expectation maximisation; rows without votes are left out.

    With a `balance` [labels] it is kept, else estimated. `known` int32 [patterns] holds the true label where it is
    known, -1 elsewhere.
    """
    heard = np.flatnonzero(patterns.covered & (patterns.counts > 0))
    patterns = Patterns(patterns.votes[heard], patterns.counts[heard], np.arange(len(heard)))
    told = None if known is None else known[heard]
    voters, rows = patterns.votes.shape[1], float(patterns.counts.sum())
    symbols = one_hot(patterns.votes, labels, abstain=True)
    prior = balance_of_majority(patterns, labels) if balance is None else balance
    lone, lone_rows = lone_shares(patterns)
    # What a voter does say, however rarely, has some probability for every label.
    strength = PRIOR_ROWS + rows * lone / (1 - lone)
    firmness = PRIOR_ROWS + rows * lone_rows / (1 - lone_rows)
    pulled = strength[:, None, None] * prior[:, None] * expected_table(cast_rates(patterns, labels), prior)
    shares, soft = prior, _clamped(vote_share(patterns.votes, prior), told)
    table = np.zeros_like(pulled)
    for step in range(1, _MOST_STEPS + 1):
        weighted = soft * patterns.counts[:, None]
        total = weighted.sum(axis=0)
        if balance is None:
            shares = (total + firmness * prior) / (rows + firmness)
        said = (symbols.T @ weighted).reshape(voters, labels + 1, labels).transpose(0, 2, 1)
        weights = total + strength[:, None] * prior
        before, table = table, np.maximum((said + pulled) / np.maximum(weights, LEAST)[:, :, None], LEAST)
        if np.abs(table - before).max() < _TOLERANCE:
            return Fitted(shares, table, step, converged=True)
        logs = np.log(table).transpose(0, 2, 1).reshape(-1, labels)
        soft = _clamped(normalised(symbols @ logs + np.log(np.maximum(shares, LEAST))), told)
    return Fitted(shares, table, _MOST_STEPS, converged=False)


def balance_of_majority(patterns: Patterns, labels: int) -> np.ndarray:
    """Return the share of each label [labels] in the soft majority of the rows with votes; one row more for each.

    Voters that nearly always say the same are not asked, unless all do.
    """
    even = np.full(labels, 1 / labels)
    constant = near_constant(patterns.votes, labels, patterns.counts)
    votes = patterns.votes if constant.all() else patterns.votes[:, ~constant]
    counts = patterns.counts * (votes != NO_VOTE).any(axis=1)
    found: np.ndarray = (counts @ majority(votes, even) + 1) / (counts.sum() + labels)
    return found


def _clamped(soft: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    if known is not None:
        told = np.flatnonzero(known >= 0)
        soft[told] = 0
        soft[told, known[told]] = 1
    return soft
