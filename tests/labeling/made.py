"""Votes whose truth is known: voters of given accuracies, copies of voters, and the triplet estimate as an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from adapterhub.labeling.votes import NO_VOTE, Votes


def named(matrix: np.ndarray, labels: int) -> Votes:
    """Return votes int32 [rows, voters] with names: rows "0", voters "v0", labels "a", "b", …"""
    rows, voters = matrix.shape
    names = tuple("abcdefghij"[:labels])
    return Votes(tuple(map(str, range(rows))), tuple(f"v{n}" for n in range(voters)), names, matrix.astype(np.int32))


def noisy(truth: np.ndarray, accuracy: float, labels: int, draw: np.random.Generator) -> np.ndarray:
    """Return the truth [rows], wrong with probability 1 - accuracy, then any other label alike."""
    wrong = draw.random(len(truth)) >= accuracy
    return np.where(wrong, (truth + draw.integers(1, labels, len(truth))) % labels, truth)


def independent(
    rows: int, accuracies: Sequence[float], labels: int = 2, coverage: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the truth [rows] and votes [rows, voters] that are independent given it."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, labels, rows)
    votes = np.stack([noisy(truth, each, labels, draw) for each in accuracies], axis=1)
    return truth, np.where(draw.random(votes.shape) < coverage, votes, NO_VOTE)


def cloned(rows: int, clones: int, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the truth and the votes of three independent voters (75%) and noisy copies of one of 60%."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 2, rows)
    votes = [noisy(truth, 0.75, 2, draw) for _ in range(3)]
    copied = noisy(truth, 0.6, 2, draw)
    votes += [noisy(copied, 1 - noise, 2, draw) for _ in range(clones)]
    return truth, np.stack(votes, axis=1)


def triplet_accuracies(votes: np.ndarray) -> np.ndarray:
    """Return the accuracy of each voter of two labels without abstains: the median over triplets.

    Fu et al., "Fast and three-rious: speeding up weak supervision with triplet methods", ICML 2020.
    """
    signs = 2.0 * votes - 1
    together = signs.T @ signs / len(votes)
    found = []
    for voter in range(votes.shape[1]):
        others = [each for each in range(votes.shape[1]) if each != voter]
        strengths = [
            np.sqrt(abs(together[voter, one] * together[voter, other] / together[one, other]))
            for one, other in combinations(others, 2)
        ]
        found.append((1 + min(1.0, float(np.median(strengths)))) / 2)
    return np.array(found)


def right(probs: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of rows whose likeliest label is true, those that tie counted by their part."""
    best = probs >= probs.max(axis=1, keepdims=True) - 1e-9
    return float((best[np.arange(len(truth)), truth] / best.sum(axis=1)).mean())
