"""Influence towards a target: cosines of gradients, by group, what is kept by it and what that is held against."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from adapterhub.curation.influence import influence, plan_by_influence, try_towards
from adapterhub.errors import DataError, UsageError


@given(some.integers(0, 2**32 - 1), some.floats(0.01, 100))
def test_it_is_the_mean_cosine_whatever_the_lengths(seed: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    rows, target = draw.normal(size=(7, 5)).astype(np.float32), draw.normal(size=(4, 5)).astype(np.float32)
    found = influence(rows, target)
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(target, axis=1)[None]
    np.testing.assert_allclose(found, (rows @ target.T / lengths).mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(influence(rows * np.float32(scale), target), found, atol=1e-5)
    assert (np.abs(found) <= 1 + 1e-5).all()


def test_the_nearest_group_counts() -> None:
    target = np.eye(3, dtype=np.float32)
    rows = np.array([[1, 0, 0], [0, 0, 2], [1, 1, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(influence(rows, target), [1 / 3, 1 / 3, 2 / 3 / np.sqrt(2), 0], atol=1e-6)
    np.testing.assert_allclose(influence(rows, target, ["a", "a", "b"]), [0.5, 1, 1 / np.sqrt(2), 0], atol=1e-6)
    with pytest.raises(DataError, match="target has no rows"):
        influence(rows, target[:0])


def test_rows_of_most_influence_stay_and_those_without_an_answer_go_first() -> None:
    values = np.array([0.1, np.nan, 0.9, -0.5, 0.3], np.float32)
    labels = np.array([0, -1, 0, 1, 0])
    plan = plan_by_influence(values, labels, 0.6)
    assert plan.dropped() == [1, 3]
    assert plan.reason(3) == {"reason": "influence", "score": -0.5}
    assert plan.reason(1) == {"reason": "influence, which tells nothing of a row without an answer"}
    # With a floor every class keeps a row.
    assert plan_by_influence(values, labels, 0.6, floor=1.0).dropped() == [0, 4]
    with pytest.raises(UsageError, match="share"):
        plan_by_influence(values, labels, 0)


def test_what_stays_is_held_against_as_many_random_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    labels = np.tile([0, 1], 100)
    features = draw.normal(size=(200, 4)).astype(np.float32)
    features[:100, 0] += np.where(labels[:100], 3, -3)  # the first half tells the target's labels apart,
    features[100:, 0] -= np.where(labels[100:], 3, -3)  # the second half has them the other way round
    target = draw.normal(size=(30, 4)).astype(np.float32)
    gold = np.tile([0, 1, -1], 10)
    target[:, 0] += np.where(gold == 1, 3, -3)
    stays = np.arange(200) < 60
    found = try_towards(stays, features, labels, target, gold)
    assert found is not None
    means = found.means()
    assert (means["influence"], len(found.accuracy["random"])) == (1.0, 3)
    assert means["random"] < 0.9
    monkeypatch.setattr("adapterhub.curation.influence._TRIAL_ROWS", 120)  # of a large pool some rows are looked at
    sample = try_towards(stays, features, labels, target, gold)
    assert sample is not None
    assert sample.means()["influence"] > sample.means()["random"]
    assert try_towards(stays, features, np.zeros(200, int), target, gold) is None
    assert try_towards(stays, features, labels, target, np.zeros(30, int)) is None
    assert try_towards(stays, features, labels, target, np.full(30, -1)) is None
