"""Rungs: sizes that halve, nested subsets, outcomes that are kept whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapterhub.errors import UsageError
from adapterhub.pipeline.rungs import Outcomes, check_sizes, ladder_sizes, rungs_of
from tests.training.jobs import toy_rows


@pytest.mark.parametrize(
    ("rows", "labels", "sizes"),
    [
        (376, 8, (23, 47, 94, 188, 376)),
        (80, 2, (10, 20, 40, 80)),
        (5000, 100, (312, 625, 1250, 2500, 5000)),
        (500, 100, (250, 500)),
        (12, 0, (12,)),
    ],
)
def test_sizes_halve_from_all_rows(rows: int, labels: int, sizes: tuple[int, ...]) -> None:
    assert ladder_sizes(rows, labels) == sizes


def test_asked_sizes() -> None:
    assert check_sizes((40, 10, 20, 10), 40) == (10, 20, 40)
    for sizes in ((10, 20), (1, 10, 20), (10, 20, 41)):
        with pytest.raises(UsageError, match="from 2 to 40"):
            check_sizes(sizes, 40)


def test_subsets_are_nested_and_seeds_draw_their_own() -> None:
    rows = toy_rows(40)
    rungs = {(each.size, each.seed): set(each.rows) for each in rungs_of(rows, (10, 20, 40), (3, 4))}
    assert list(rungs) == [(10, 3), (10, 4), (20, 3), (20, 4), (40, 3), (40, 4)]
    for seed in (3, 4):
        assert rungs[10, seed] < rungs[20, seed] < rungs[40, seed] == set(range(40))
    assert rungs[10, 3] != rungs[10, 4]


def test_keys_tell_rows_and_seeds_apart_but_not_the_order() -> None:
    rows = toy_rows(40)
    small, _, large, other = (each for each in rungs_of(rows, (10, 40), (3, 4)))
    assert large.key(rows, None) == other.key(rows, None)
    assert large.key(rows, 3) != other.key(rows, 4)
    assert small.key(rows, 3) != large.key(rows, 3)


def test_outcomes_are_kept(tmp_path: Path) -> None:
    kept = Outcomes(tmp_path / "new")
    assert kept.get("a") is None
    for place, key in enumerate("abcdef"):
        kept.put(key, [place % 2 == 0, True])
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == [f"{key}.npy" for key in "abcdef"]
    ladder = Outcomes(tmp_path / "new").ladder((5, 9), list("abcdef"))
    assert ladder.wrong.shape == (2, 3, 2)
    assert ladder.wrong[:, :, 0].tolist() == [[1, 0, 1], [0, 1, 0]]
    assert ladder.wrong.dtype == np.float32
    for damaged in (b"", b"junk"):
        (tmp_path / "new" / "a.npy").write_bytes(damaged)
        assert kept.get("a") is None  # and so it is found out again
