"""What label models share: votes as patterns that are counted, and tables of how a voter votes given the true label.

Rows in which all voters say the same are one pattern, so that the cost of a fit does not grow with their number. A
table is float64 [voters, labels, labels + 1]: P(voter says a | the label is y), the last of a being the abstain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from adapterhub.labeling.votes import NO_VOTE

# How often a vote is right before anything is known of it.
ACCURACY = 0.7
# So many rows that belief is worth: few votes make nothing certain.
PRIOR_ROWS = 10.0
# No probability is less: its logarithm has to be finite.
LEAST = 1e-9
# A voter that is always alone is as one that hardly ever is not.
_MOST_ALONE = 0.99
_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Patterns:
    """int32 `votes` [patterns, voters], how many rows have each (`counts`), and the pattern of each row (`of_row`)."""

    votes: np.ndarray
    counts: np.ndarray
    of_row: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """Whether any voter votes, bool [patterns]."""
        covered: np.ndarray = (self.votes != NO_VOTE).any(axis=1)
        return covered


def patterns_of(matrix: np.ndarray) -> Patterns:
    """Return the patterns of votes int32 [rows, voters]."""
    votes, of_row, counts = np.unique(matrix, axis=0, return_inverse=True, return_counts=True)
    return Patterns(votes, counts.astype(np.float64), of_row.reshape(-1))


def one_hot(votes: np.ndarray, labels: int, *, abstain: bool) -> sparse.csr_matrix:
    """Return votes [patterns, voters] as zeros and ones, [patterns, voters * labels], or labels + 1 with `abstain`."""
    width = labels + abstain
    patterns, voters = np.nonzero((votes != NO_VOTE) | abstain)
    symbols = votes[patterns, voters]
    columns = voters * width + np.where(symbols == NO_VOTE, labels, symbols)
    ones = np.ones(len(patterns))
    return sparse.csr_matrix((ones, (patterns, columns)), shape=(len(votes), votes.shape[1] * width))


def posterior(votes: np.ndarray, balance: np.ndarray, table: np.ndarray, *, abstain: bool) -> np.ndarray:
    """Return P(label | votes) [patterns, labels]: the balance times what each vote says of the label.

    With `abstain` a voter's silence counts as a vote; without, it says nothing.
    """
    voters, labels, _ = table.shape
    width = labels + abstain
    said = np.log(table[:, :, :width]).transpose(0, 2, 1).reshape(voters * width, labels)
    logs = one_hot(votes, labels, abstain=abstain) @ said + np.log(np.maximum(balance, 1e-300))
    return normalised(logs)


def normalised(logs: np.ndarray) -> np.ndarray:
    """Return probabilities [rows, labels] of logarithms that lack the same constant in each row."""
    odds = np.exp(logs - logs.max(axis=1, keepdims=True))
    probs: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
    return probs


def expected_table(often: np.ndarray, balance: np.ndarray, accuracy: float = ACCURACY) -> np.ndarray:
    """Return the table of voters of which only is known how often they cast each vote, `often` [voters, labels].

    A vote is right with probability `accuracy`, any other label being as likely as the balance has it. Where that does
    not fit how often votes are cast and labels true, the nearest table with the same odds that does is taken, by
    iterative proportional fitting (Deming and Stephan, Annals of Mathematical Statistics 11, 1940).
    """
    voters, labels = often.shape
    true = np.outer(np.full(labels, 1 - accuracy), balance) / np.maximum(1 - balance, LEAST)[:, None]  # [said, label]
    np.fill_diagonal(true, accuracy)
    joint = np.zeros((voters, labels, labels + 1))  # [voter, label, said]
    joint[:, :, :labels] = (often[:, :, None] * true).transpose(0, 2, 1)
    silent = np.maximum(1 - often.sum(axis=1), 0)
    left = balance[None, :] - joint.sum(axis=2)
    joint[:, :, labels] = np.where(silent[:, None] > LEAST, np.maximum(left, 0.01 * silent[:, None] * balance), 0)
    said = np.column_stack([often, silent])[:, None, :]
    for _ in range(_ROUNDS):
        joint *= balance[None, :, None] / np.maximum(joint.sum(axis=2, keepdims=True), 1e-300)
        joint *= said / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
    table: np.ndarray = joint / np.maximum(joint.sum(axis=2, keepdims=True), 1e-300)
    return table


def lone_shares(patterns: Patterns) -> tuple[np.ndarray, float]:
    """Return which part of each voter's votes is cast where no other votes [voters], and that part of all covered rows.

    Such votes are compared with nothing, so that no model can learn from them how good they are.
    """
    cast = patterns.votes != NO_VOTE
    alone = cast & (cast.sum(axis=1) == 1)[:, None]
    votes, lone = patterns.counts @ cast, patterns.counts @ alone
    covered = float(patterns.counts @ patterns.covered)
    shares = np.divide(lone, votes, out=np.zeros_like(votes), where=votes > 0)
    return np.minimum(shares, _MOST_ALONE), min(float(lone.sum() / max(covered, 1.0)), _MOST_ALONE)


def cast_rates(patterns: Patterns, labels: int) -> np.ndarray:
    """Return how often each voter casts each vote, a share of all rows [voters, labels]."""
    votes = one_hot(patterns.votes, labels, abstain=False)
    often: np.ndarray = (votes.T @ patterns.counts) / max(patterns.counts.sum(), 1.0)
    return often.reshape(-1, labels)
