"""Cheap heads: multinomial logistic regressions on fixed features, which say in seconds what costs an adapter minutes.

What they are for is judging rows (label errors, scores, learning curves), never for answering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adapterhub.errors import DataError


def standardise(features: np.ndarray) -> np.ndarray:
    """Return float32 features [rows, dim] with mean 0 and variance 1 in each dimension that varies."""
    given = np.asarray(features, dtype=np.float32)
    spread = given.std(axis=0)
    scaled: np.ndarray = (given - given.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    strength: float = 0.01,
    seed: int = 0,
) -> Any:
    """Return a scikit-learn LogisticRegression fitted on features [rows, dim] and label indices [rows].

    `strength` is C, the inverse of the L2 penalty: small, since features have more dimensions than a task has rows.
    Raises DataError for fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise DataError("all rows have the same label; a head needs at least two")
    return LogisticRegression(C=strength, max_iter=200, tol=1e-3, random_state=seed).fit(features, labels, weights)


def head_probabilities(head: Any, features: np.ndarray, classes: int) -> np.ndarray:
    """Return float64 [rows, classes], zero for classes that the head was not fitted on."""
    found = np.zeros((features.shape[0], classes))
    found[:, head.classes_] = head.predict_proba(features)
    return found


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, classes: int, *, folds: int = 5, seed: int = 0, strength: float = 0.01
) -> np.ndarray:
    """Return float64 [rows, classes]: what a head that did not see a row thinks of it. Sparse features will do too.

    Folds are stratified by label as far as rows reach. Raises DataError for fewer rows than folds or one class only.
    """
    if len(labels) < folds:
        raise DataError(f"there are {len(labels)} rows; {folds} folds need at least as many")
    found = np.zeros((features.shape[0], classes))
    for fold in _folds(labels, folds, seed):
        rest = np.setdiff1d(np.arange(len(labels)), fold)
        head = fit_head(features[rest], labels[rest], strength=strength, seed=seed)
        found[fold] = head_probabilities(head, features[fold], classes)
    return found


def _folds(labels: np.ndarray, folds: int, seed: int) -> Sequence[np.ndarray]:
    """Return the rows of each fold: of every label as many as of any other fold, give or take one."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(labels))
    dealt = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(dealt[start::folds]) for start in range(folds)]
