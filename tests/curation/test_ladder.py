"""Ladders: what is resampled, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.curation.ladder import Ladder
from adapterhub.errors import DataError
from tests.curation.climbing import ladder


def test_resamples_spread_as_seeds_and_rows_do() -> None:
    given = ladder(rows=200, seeds=4)
    means = given.resample(4000)
    assert means.mean(axis=0) == pytest.approx(given.errors, abs=0.003)
    # By hand, one resample after another.
    draw = np.random.default_rng(1)
    slow = np.empty((2000, len(given.sizes)))
    for turn in range(2000):
        seeds, rows = draw.integers(0, 4, 4), draw.integers(0, 200, 200)
        slow[turn] = given.wrong[:, seeds][:, :, rows].mean(axis=(1, 2))
    assert means.std(axis=0) == pytest.approx(slow.std(axis=0), rel=0.1)
    assert np.corrcoef(means.T)[0, 1] == pytest.approx(np.corrcoef(slow.T)[0, 1], abs=0.1)


def test_one_seed_or_one_row_is_all_there_is_to_draw() -> None:
    whole = Ladder((1, 2), np.array([[[1.0], [1.0]], [[0.0], [0.0]]], np.float32))
    assert whole.resample(3).tolist() == [[1.0, 0.0]] * 3
    assert whole.errors.tolist() == [1.0, 0.0]


def test_parts_of_a_ladder() -> None:
    given = ladder(rows=10)
    assert given.below(2).sizes == (25, 50)
    assert given.rows(np.arange(10) < 3).wrong.shape == (5, 5, 3)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.curation.ladder._AT_ONCE", 500)
    given = ladder(rows=100, seeds=3)
    assert given.resample(12).shape == (12, 5)
    assert given.resample(2000).std(axis=0).min() > 0


def test_wrong_shapes_are_refused() -> None:
    for sizes, shape in (
        ((2, 1), (2, 1, 1)),
        ((), (0, 1, 1)),
        ((0, 1), (2, 1, 1)),
        ((1, 2), (3, 1, 1)),
        ((1,), (1, 0, 1)),
    ):
        with pytest.raises(DataError, match="sizes"):
            Ladder(sizes, np.zeros(shape, np.float32))
    with pytest.raises(DataError, match="sizes"):
        Ladder((1,), np.zeros((1, 1), np.float32))
