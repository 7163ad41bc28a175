"""Selection: rows of the pool, each once, where they are wanted."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.curation.select import RULES, select
from adapterhub.errors import DataError, UsageError
from tests.curation.making import clouds


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", [1, 7, 60])
def test_each_row_once(rule: str, budget: int) -> None:
    pool, _ = clouds(60)
    known, labels = clouds(30, seed=1)
    rows, _ = select(pool, budget, rule, labelled=known, labels=labels)
    assert len(rows) == len({*rows.tolist()}) == budget
    assert set(rows.tolist()) <= set(range(60))
    assert np.array_equal(rows, select(pool, budget, rule, labelled=known, labels=labels)[0])


def test_cold_start_takes_one_of_each_cloud() -> None:
    pool, classes = clouds(300, classes=8, apart=12.0)
    rows, rule = select(pool, 8)
    assert rule == "typicality"
    assert len(set(classes[rows].tolist())) == 8
    spread, _ = select(pool, 8, "diversity")
    assert len(set(classes[spread].tolist())) == 8


@pytest.mark.parametrize("rule", ["typicality", "diversity"])
def test_what_is_known_is_not_asked_again(rule: str) -> None:
    pool, classes = clouds(300, classes=8, apart=12.0)
    known = pool[classes < 5][:60]
    rows, _ = select(pool[60:], 3, rule, labelled=known, labels=np.zeros(60, int))
    assert set(classes[60:][rows].tolist()) == {5, 6, 7}


def test_uncertain_rows_lie_between() -> None:
    draw = np.random.default_rng(0)
    known = np.concatenate([draw.normal(-3, 1, (40, 2)), draw.normal(3, 1, (40, 2))]).astype(np.float32)
    pool = draw.uniform(-5, 5, (400, 2)).astype(np.float32)
    labels = np.repeat([0, 1], 40)
    rows, _ = select(pool, 20, "uncertainty", labelled=known, labels=labels)
    assert np.abs(pool[rows].sum(axis=1)).mean() < np.abs(pool.sum(axis=1)).mean() / 4


def test_a_batch_does_not_ask_the_same_question_many_times() -> None:
    known, labels = clouds(60, classes=4, apart=12.0)
    pool, _ = clouds(200, classes=4, seed=1, apart=12.0)
    between = (known[0] + known[1]) / 2
    pool[:40] = between + 0.01 * pool[:40]  # forty times the most uncertain row
    plain, _ = select(pool, 20, "uncertainty", labelled=known, labels=labels)
    mixed, rule = select(pool, 20, labelled=known, labels=labels)
    assert rule == "auto"
    assert (plain < 40).sum() >= 18
    assert 1 <= (mixed < 40).sum() <= 5


def test_a_large_labelled_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.curation.select._HEAD_ROWS", 20)
    known, labels = clouds(200)
    assert len(select(clouds(50, seed=2)[0], 5, "uncertainty", labelled=known, labels=labels)[0]) == 5


def test_equal_rows_can_be_chosen_too() -> None:
    pool = np.ones((10, 4), np.float32)
    for rule in ("diversity", "typicality"):
        assert sorted(select(pool, 10, rule)[0].tolist()) == list(range(10))


def test_what_makes_no_sense_is_refused() -> None:
    pool, labels = clouds(10)
    with pytest.raises(UsageError, match="luck"):
        select(pool, 1, "luck")
    for budget in (0, 11):
        with pytest.raises(UsageError, match="10 rows"):
            select(pool, budget)
    with pytest.raises(DataError, match="--labelled"):
        select(pool, 1, "uncertainty")
    with pytest.raises(DataError, match="two classes"):
        select(pool, 1, "uncertainty", labelled=pool, labels=np.zeros(10, int))
    assert select(pool, 1, labelled=pool[:4], labels=labels[:4])[1] == "typicality"
