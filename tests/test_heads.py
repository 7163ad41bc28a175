"""Heads on features: they separate what is separable, and never judge a row they have seen."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.errors import DataError
from adapterhub.heads import fit_head, head_probabilities, out_of_fold, standardise


def clouds(rows: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    return draw.normal(size=(rows, 8)) + 4.0 * np.eye(8)[labels], labels


def test_out_of_fold_probabilities_are_right_on_clouds() -> None:
    features, labels = clouds(120)
    found = out_of_fold(features, labels, 3, strength=1.0)
    assert np.allclose(found.sum(1), 1.0)
    assert (found.argmax(1) == labels).mean() > 0.9


def test_a_head_that_saw_the_row_is_not_asked() -> None:
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(60, 200)), draw.integers(0, 2, 60)  # nothing to learn, much to remember
    remembered = head_probabilities(fit_head(features, labels, strength=100.0), features, 2)
    assert (remembered.argmax(1) == labels).mean() == 1.0
    assert (out_of_fold(features, labels, 2, strength=100.0).argmax(1) == labels).mean() < 0.75


def test_a_class_that_the_head_never_saw_gets_nothing() -> None:
    features, labels = clouds(30, classes=2)
    found = head_probabilities(fit_head(features, labels), features, 4)
    assert found.shape == (30, 4)
    assert not found[:, 2:].any()


def test_too_little_is_refused() -> None:
    features, labels = clouds(4, classes=2)
    with pytest.raises(DataError, match="at least as many"):
        out_of_fold(features, labels, 2)
    with pytest.raises(DataError, match="at least two"):
        fit_head(features, np.zeros(4, dtype=int))


def test_standardised_features_survive_a_constant_dimension() -> None:
    features, _ = clouds(30)
    features[:, 0] = 7.0
    found = standardise(features)
    assert np.allclose(found[:, 0], 0.0)
    assert np.allclose(found[:, 1:].std(0), 1.0, atol=1e-5)
