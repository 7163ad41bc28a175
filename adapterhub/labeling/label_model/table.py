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
# No probability is less: its logarithm has to be finite.
LEAST = 1e-9


@dataclass(frozen=True, eq=False)
class Patterns:
    """int32 `votes` [patterns, voters], how many rows have each (`counts`), and the pattern of each row (`of_row`)."""

    votes: np.ndarray
    counts: np.ndarray
    of_row: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.of_row)

    @property
    def covered(self) -> np.ndarray:
        """Whether any voter votes, bool [patterns]."""
        covered: np.ndarray = (self.votes != NO_VOTE).any(axis=1)
        return covered

    def weighted(self, counts: np.ndarray) -> Patterns:
        """Return the same patterns with other counts, those of a resample for instance."""
        return Patterns(self.votes, counts, self.of_row)


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

    A vote is right with probability `accuracy`; if it is wrong, the other labels are as likely as the balance has them.
    """
    voters, labels = often.shape
    true = np.outer(np.full(labels, 1 - accuracy), balance) / np.maximum(1 - balance, 1e-12)[:, None]  # [said, label]
    np.fill_diagonal(true, accuracy)
    cast = often[:, None, :] * (true / np.maximum(balance, 1e-12)[None, :]).T[None]
    table = np.zeros((voters, labels, labels + 1))
    table[:, :, :labels] = cast / np.maximum(cast.sum(axis=2, keepdims=True), 1)
    table[:, :, labels] = np.maximum(1 - table.sum(axis=2), 0)
    return table


def cast_rates(patterns: Patterns, labels: int) -> np.ndarray:
    """Return how often each voter casts each vote, a share of all rows [voters, labels]."""
    votes = one_hot(patterns.votes, labels, abstain=False)
    often: np.ndarray = (votes.T @ patterns.counts) / patterns.counts.sum()
    return often.reshape(-1, labels)
