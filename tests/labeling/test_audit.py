"""Confident learning finds planted errors, by the paper's own arithmetic where it can be done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from adapterhub.errors import UsageError
from adapterhub.heads import out_of_fold
from adapterhub.labeling.audit import Twins, doubts, find_suspects, find_twins, noise
from adapterhub.labeling.words import word_features


def test_noise_by_hand() -> None:
    # Thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.8 + 0.4) / 2 = 0.6.
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4]])
    given = np.array([0, 0, 0, 1, 1])
    # Of label 0 two rows count for 0 and one for 1; of label 1 one for each.
    assert np.allclose(noise(chances, given), [[2, 1], [1, 1]])
    found = find_suspects(chances, given)
    assert [(each.row, each.given, each.suggested) for each in found] == [(2, 0, 1), (4, 1, 0)]
    assert np.allclose([each.score for each in found], [0.8, 0.2])


def test_rows_nobody_is_sure_of_are_scaled_away() -> None:
    # Thresholds 0.7 and 0.7: the last row reaches neither, and its label's count still sums to 2.
    chances = np.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]])
    assert np.allclose(noise(chances, np.array([0, 0, 1])), [[2, 0], [0, 1]])


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@drawn(st.integers(0, 10_000), st.integers(2, 80), st.integers(1, 60))
def test_what_holds_for_any_probabilities(seed: int, classes: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    given = draw.integers(0, classes, rows)
    chances = draw.dirichlet(np.ones(classes) * 0.3, rows)
    estimated = noise(chances, given)
    assert np.isfinite(estimated).all()
    assert np.allclose(estimated.sum(1), np.bincount(given, minlength=classes))
    found = find_suspects(chances, given)
    margins, _ = doubts(chances, given)
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert len({each.row for each in found}) == len(found)
    for each in found:
        assert each.given == given[each.row] != each.suggested == chances[each.row].argmax()
        assert each.score == margins[each.row] > 0


def test_a_label_of_one_row_does_not_draw_every_unsure_row() -> None:
    # Nobody is sure of the last row, and label 2, of which heads know nothing, is not what it becomes.
    chances = np.array([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]])
    given = np.array([0, 0, 1, 1, 2])
    assert noise(np.vstack([chances, [[0.5, 0.49, 0.01]]]), np.array([*given, 0]))[0].tolist() == [3, 0, 0]


def test_sure_and_right_heads_doubt_nothing() -> None:
    given = np.arange(40) % 4
    assert find_suspects(np.eye(4)[given] * 0.8 + 0.05, given) == []
    assert find_suspects(np.full((40, 4), 0.25), given) == []  # and heads that know nothing, no more


@pytest.mark.parametrize("classes", [2, 12])
def test_planted_errors_are_found(classes: int) -> None:
    draw = np.random.default_rng(0)
    gold = np.arange(600) % classes
    features = draw.normal(size=(600, 16)) + 3.5 * np.eye(16)[gold]
    wrong = draw.choice(600, 60, replace=False)
    given = gold.copy()
    given[wrong] = (given[wrong] + 1) % classes
    found = find_suspects(out_of_fold(features, given, classes, strength=0.1), given)
    rows = [each.row for each in found]
    assert len(set(rows) & set(wrong)) > 0.85 * len(wrong)
    assert len(set(rows) & set(wrong)) > 0.7 * len(rows)
    assert all(each.suggested == gold[each.row] for each in found[:30])


@pytest.mark.parametrize("chances", [np.zeros((2, 2)), np.zeros(3), np.zeros((3, 1))])
def test_arrays_that_do_not_belong_together(chances: np.ndarray) -> None:
    with pytest.raises(UsageError, match="have shape"):
        find_suspects(chances, np.array([0, 0, 0]))


def test_twins_have_different_labels_and_are_few() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(40, 32)) + 50.0  # all point one way, as those of decoders do
    features[5] = features[3] + 0.001
    features[7] = features[6]
    given = np.zeros(40, dtype=int)
    given[5] = 1
    assert [(each.first, each.second) for each in find_twins(features, given, 0.95)] == [(3, 5)]
    many = np.vstack([features[:1]] * 100 + [features[1:]])
    labels = np.array([0, 1] * 50 + [0] * 39)
    pairs = find_twins(many, labels, 0.95)
    assert len(pairs) <= 100
    assert isinstance(pairs[0], Twins)
    assert pairs[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert find_twins(many, np.zeros(139, dtype=int), 0.5) == []


def test_words() -> None:
    found = word_features(["who is it ?", "who was it ?", "where is it ?"])
    assert found is not None
    assert found.shape[0] == 3
    assert (found[0] != found[2]).nnz > 0
    assert word_features(["one", "two"]) is None
    assert word_features(["", " "]) is None
