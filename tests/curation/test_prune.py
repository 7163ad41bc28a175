"""Pruning: as many rows as asked, floors for classes, no hard rows first where labels are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.curation.prune import METRICS, NOISY, Trial, audit, chosen, keep_count, make_plan, prune, try_out
from adapterhub.curation.scores import score_rows
from adapterhub.errors import DataError, UsageError
from tests.curation.making import clouds, flipped


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=1, max_size=80),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_count_and_floors_hold(rows: list[tuple[int, float]], share: float, floor: float) -> None:
    labels, worth = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    count = keep_count(share, len(rows))
    stays = chosen(worth, labels, count, floor=floor)
    assert stays.sum() == count
    if count >= len(np.unique(labels)) + floor * count:
        for label in np.unique(labels):
            mine = labels == label
            least = max(1, int(floor * count / len(rows) * mine.sum()))
            assert stays[mine].sum() >= least
            if 0 < stays[mine].sum() < mine.sum():  # within a class the worthier stay
                assert worth[mine & stays].min() >= worth[mine & ~stays].max()


def test_easy_and_hard_are_opposites() -> None:
    features, labels = clouds(120)
    el2n = score_rows(features, labels, 3, ["el2n"])["el2n"]
    easy, hard = (prune(features, labels, 3, metric, 60, floor=0.0) for metric in ("easy", "hard"))
    assert el2n[easy].max() <= el2n[hard].min() + 1e-6
    assert np.array_equal(
        prune(features, labels, 3, "random", 60, seed=3), prune(features, labels, 3, "random", 60, seed=3)
    )
    assert not np.array_equal(
        prune(features, labels, 3, "random", 60), prune(features, labels, 3, "random", 60, seed=3)
    )


def test_random_keeps_the_shares_of_classes() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    stays = prune(np.zeros((100, 2), np.float32), labels, 2, "random", 50)
    assert np.bincount(labels[stays]).tolist() == [40, 10]


def test_a_rare_class_stays() -> None:
    features, labels = clouds(100)
    labels[:] = labels % 2
    labels[0] = 2
    for metric in METRICS[1:]:
        assert prune(features, labels, 3, metric, 10)[0], metric


def test_hard_rows_first_is_refused_where_labels_are_wrong() -> None:
    features, gold = clouds(300)
    labels, wrong = flipped(gold, 3, 0.2)
    for metric in ("hard", "margin", "loss", "forgetting"):
        with pytest.raises(DataError, match="look wrong"):
            make_plan(features, labels, 3, metric, 0.5)
    plan = make_plan(features, labels, 3, "hard", 0.5, force=True)
    assert plan.noise is not None
    assert plan.noise >= NOISY
    assert plan.stays[wrong].mean() > 0.9
    assert not make_plan(features, labels, 3, "easy", 0.5).stays[wrong].any()
    assert make_plan(features, gold, 3, "hard", 0.5).metric == "hard"


def test_auto_on_wrong_labels_takes_the_easy() -> None:
    features, gold = clouds(600, apart=2.5)
    labels, _ = flipped(gold, 3, 0.3)
    plan = make_plan(features, labels, 3, "auto", 0.3)
    assert set(plan.accuracy()) <= {"random", "easy", "all"}
    assert plan.metric == "easy"
    row = plan.dropped()[0]
    assert plan.reason(row)["reason"] == "easy"
    assert isinstance(plan.reason(row)["score"], float)


def test_few_rows_do_not_tell_whether_hard_ones_are_wrong() -> None:
    features, labels = clouds(40)
    with pytest.raises(DataError, match="fewer than 50 labelled rows of two classes do not tell"):
        make_plan(features, labels, 3, "hard", 0.5)
    assert make_plan(features, labels, 3, "hard", 0.5, force=True).metric == "hard"
    assert make_plan(features, labels, 3, "easy", 0.5).metric == "easy"


def test_a_row_that_was_not_judged_says_so() -> None:
    features, labels = clouds(100)
    labels[:10] = -1
    plan = make_plan(features, labels, 3, "easy", 0.5)
    reasons = {row: plan.reason(row) for row in plan.dropped()}
    assert {reasons[row]["reason"] for row in reasons if row < 10} == {
        "easy, which tells nothing of a row without an answer"
    }
    assert {reasons[row]["reason"] for row in reasons if row >= 10} == {"easy"}


def test_random_needs_no_trial() -> None:
    plan = make_plan(np.zeros((10, 2), np.float32), np.full(10, -1), 0, "random", 0.3)
    assert (plan.stays.sum(), plan.trial, plan.noise, plan.accuracy()) == (3, None, None, {})
    assert plan.reason(plan.dropped()[0]) == {"reason": "random"}


def test_prototype_needs_no_labels() -> None:
    features, _ = clouds(40)
    plan = make_plan(features, np.full(40, -1), 0, "prototype", 0.25)
    assert plan.stays.sum() == 10
    assert plan.reason(plan.dropped()[0])["reason"] == "prototype"


def test_what_makes_no_sense_is_refused() -> None:
    features, labels = clouds(40)
    with pytest.raises(UsageError, match="beauty"):
        make_plan(features, labels, 3, "beauty", 0.5)
    with pytest.raises(UsageError, match="beauty"):
        prune(features, labels, 3, "beauty", 5)
    with pytest.raises(UsageError, match="needs 50 labelled"):
        make_plan(features, labels, 3, "auto", 0.5)
    with pytest.raises(DataError, match="40 labelled rows"):
        try_out(features, labels, 3, 20)
    with pytest.raises(UsageError, match=r"1\.5"):
        keep_count(1.5, 10)


def test_the_best_must_be_surely_better() -> None:
    assert Trial({"random": [0.5, 0.6, 0.7], "easy": [0.6, 0.7, 0.8], "all": [1, 1, 1]}).best() == "easy"
    assert Trial({"random": [0.5, 0.6, 0.7], "easy": [0.9, 0.5, 0.5], "all": [1, 1, 1]}).best() == "random"
    assert Trial({"random": [0.5], "easy": [0.9]}).best() == "random"


def test_an_audit_looks_at_labelled_rows_and_not_at_all_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(200)
    labels[:20] = -1
    assert len(audit(features, labels, 3).own) == 180
    monkeypatch.setattr("adapterhub.curation.prune._TRIAL_ROWS", 100)
    assert len(audit(features, labels, 3).own) == 100
