"""Majority vote: what label models are measured against, and where they begin."""

from __future__ import annotations

import numpy as np

from adapterhub.labeling.votes import NO_VOTE

# A voter that gives this share of all rows the same label says next to nothing.
NEAR_CONSTANT = 0.9


def near_constant(votes: np.ndarray, labels: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return which voters give the same label to nearly all rows, bool [voters]; `weights` [rows] count the rows."""
    counted = np.ones(len(votes)) if weights is None else weights
    most = [np.bincount(each + 1, counted, minlength=labels + 1)[1:].max() for each in votes.T]
    constant: np.ndarray = np.array(most) >= NEAR_CONSTANT * counted.sum()
    return constant


def vote_counts(votes: np.ndarray, labels: int) -> np.ndarray:
    """Return how many voters [rows, voters] vote for each label: int64 [rows, labels]."""
    counts = np.zeros((len(votes), labels), dtype=np.int64)
    for column in votes.T:
        voting = np.flatnonzero(column != NO_VOTE)
        counts[voting, column[voting]] += 1
    return counts


def majority(votes: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Return the soft majority [rows, labels]: 1 for the label with the most votes, shared evenly among those that tie.

    A row without votes gets the balance.
    """
    counts = vote_counts(votes, len(balance))
    most = counts.max(axis=1, keepdims=True)
    best = (counts == most).astype(np.float64)
    soft: np.ndarray = np.where(most > 0, best / best.sum(axis=1, keepdims=True), balance)
    return soft


def vote_share(votes: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Return the share of the votes [rows, labels] that each label has; a row without votes gets the balance."""
    counts = vote_counts(votes, len(balance)).astype(np.float64)
    cast = counts.sum(axis=1, keepdims=True)
    shares: np.ndarray = np.where(cast > 0, counts / np.maximum(cast, 1), balance)
    return shares
