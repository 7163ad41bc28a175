"""Scores: wrong labels look hard, the typical looks typical, and rows without labels get what needs none."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.curation import clusters, outlook
from adapterhub.curation.clusters import cluster, directions, picked
from adapterhub.curation.early import Watch, moments, watch_heads
from adapterhub.curation.outlook import look_out
from adapterhub.curation.scores import SCORES, prototype_distance, score_rows
from adapterhub.errors import DataError, UsageError
from adapterhub.heads import standardise
from tests.curation.making import clouds, flipped


def above(values: np.ndarray, wrong: np.ndarray) -> float:
    """Return how often a wrong row's value is above a right row's: the area under the curve."""
    return float((values[wrong][:, None] > values[~wrong][None]).mean())


def test_wrong_labels_look_hard() -> None:
    features, gold = clouds(300)
    labels, wrong = flipped(gold, 3, 0.15)
    scores = score_rows(features, labels, 3)
    assert list(scores) == list(SCORES)
    assert all(values.dtype == np.float32 and len(values) == 300 for values in scores.values())
    for name in ("el2n", "margin", "loss"):
        assert above(scores[name], wrong) > 0.9, name
    assert above(scores["forgetting"], wrong) > 0.7
    judged = look_out(features, labels, 3)
    assert judged.suspect[wrong].mean() > 0.5
    assert judged.suspect[~wrong].mean() < 0.15
    assert (judged.rival == gold)[wrong & judged.suspect].mean() > 0.9
    assert look_out(features, gold, 3).noise < judged.noise / 2


def test_a_class_of_one_row_makes_no_other_suspect() -> None:
    features, labels = clouds(300)
    before = look_out(features, labels, 3)
    assert before.noise < 0.02
    lone = np.concatenate([features, features[:1] + 0.5])
    after = look_out(lone, np.concatenate([labels, [3]]), 4)
    assert after.noise < 0.02
    assert 3 not in after.rival


def test_a_suspect_row_s_other_class_is_likelier_than_its_own() -> None:
    features, labels = clouds(400, apart=1.0)  # classes that lie in each other
    found = look_out(features, labels, 3)
    assert found.suspect.any()
    assert (found.other > found.own)[found.suspect].all()
    assert (found.rival != labels).all()


def test_equal_seeds_give_equal_scores() -> None:
    features, labels = clouds(100)
    first, again, other = (score_rows(features, labels, 3, ["el2n"], seed=seed)["el2n"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rows_without_labels() -> None:
    features, labels = clouds(100)
    some = labels.copy()
    some[:40] = -1
    scores = score_rows(features, some, 3, ["loss", "prototype", "el2n"])
    assert np.isnan(scores["loss"]).tolist() == [True] * 40 + [False] * 60
    assert np.array_equal(scores["el2n"][40:], score_rows(features[40:], some[40:], 3, ["el2n"])["el2n"])
    assert not np.isnan(scores["prototype"]).any()
    none = np.full(100, -1)
    assert np.array_equal(score_rows(features, none, 0, ["prototype"])["prototype"], scores["prototype"])
    with pytest.raises(DataError, match="prototype"):
        score_rows(features, none, 0, ["loss"])


def test_what_cannot_be_scored_is_refused() -> None:
    features, labels = clouds(100)
    with pytest.raises(UsageError, match="beauty"):
        score_rows(features, labels, 3, ["beauty"])
    with pytest.raises(DataError, match="at least two"):
        score_rows(features, np.zeros(100, int), 1, ["el2n"])
    with pytest.raises(DataError, match="9 labelled rows"):
        look_out(features[:9], labels[:9], 3)


def test_a_row_no_head_gets_right_was_forgotten_always() -> None:
    features = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]] * 10, np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1] * 10)
    labels[0] = 1
    seen = watch_heads(features, labels, 2, watch=Watch(epochs=7))
    assert seen.forgetting[0] == 7
    assert seen.forgetting[6] == 0
    assert seen.el2n[0] == seen.el2n.max() <= np.sqrt(2)


def test_the_typical_is_near_its_centre() -> None:
    features, _ = clouds(200, apart=8.0)
    features[0] = -features[0]
    distance = prototype_distance(features)
    assert distance[0] == pytest.approx(distance.max()) or distance[0] < 1e-5  # odd, or a cluster of its own
    assert ((distance > -1e-5) & (distance < 2)).all()
    single = prototype_distance(features[:2])
    assert len(single) == 2


@pytest.mark.parametrize("rows", [60, 400])
def test_large_data_is_clustered_and_judged_part_by_part(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(rows, apart=10.0)
    monkeypatch.setattr(clusters, "_BATCH", 50)
    monkeypatch.setattr(outlook, "_SHARD", 60)
    _, nearest = cluster(features, 3)
    assert all(len(set(nearest[labels == each])) == 1 for each in range(3))
    assert look_out(features, labels, 3).accuracy > 0.85  # heads of 48 rows each
    with pytest.raises(DataError, match="fewer"):
        cluster(features[:2], 3)


def test_moments_are_those_of_standardise() -> None:
    features, _ = clouds(50)
    features[:, 3] = 2.0
    mean, spread = moments(features)
    np.testing.assert_allclose((features - mean) / spread, standardise(features), atol=1e-4)


def test_picked_rows_are_those_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = clouds(50)
    rows = np.array([3, 4, 40])
    assert picked(features, np.arange(50)) is features
    assert np.array_equal(picked(features, rows), features[rows])
    monkeypatch.setattr(clusters, "_IN_MEMORY", 0)
    mapped = picked(features, rows)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, features[rows])


def test_directions_of_nothing() -> None:
    found = directions(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], atol=1e-6)
