"""Rows as curation sees them: every kind, every format, as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.curation.rows import GOLD, NO_ANSWER, SOFT, UNLABELLED, Rows
from adapterhub.data.example import content_id
from adapterhub.errors import DataError
from tests.curation.making import rows_of, write


def test_classification_rows(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"text": "a", "label": "x", "weight": 2, "own": [1, "ü"]},
        {"text": "b", "probs": {"x": 0.25, "y": 0.75}, "id": "me"},
        {"text": "c"},
        {"text": "d", "label": "x", "source": None},
    ]
    rows = rows_of(tmp_path, given)
    assert (len(rows), rows.kind) == (4, "classification")
    assert [rows.record(row) for row in range(4)] == given
    assert list(rows.texts()) == ["a", "b", "c", "d"]
    assert rows.ranks.tolist() == [GOLD, SOFT, UNLABELLED, GOLD]
    assert rows.weights.tolist() == [2, 1, 1, 1]
    assert rows.labels == ["x", "y", None, "x"]
    assert rows.label_indices()[0] == ("x", "y")
    assert rows.label_indices()[1].tolist() == [0, 1, -1, 0]
    assert (rows.answers == NO_ANSWER).tolist() == [False, True, True, False]
    assert rows.answers[0] == rows.answers[3]
    assert rows.id(1) == "me"
    assert rows.id(2) == content_id({"text": "c"})


def test_a_csv_file_and_two_files(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,\n")
    rows = Rows.read([tmp_path / "rows.csv", write(tmp_path / "more.jsonl", [{"text": "a", "label": "x"}])])
    assert rows.record(1) == {"text": "b", "label": None}
    assert [rows.text(row) for row in range(3)] == ["a", "b", "a"]
    assert rows.id(0) == rows.id(2)


@pytest.mark.parametrize(
    ("row", "kind", "text", "ranked"),
    [
        ({"text": "a", "labels": ["y", "x"]}, "multilabel", "a", GOLD),
        ({"text": "a", "labels": []}, "multilabel", "a", GOLD),
        ({"prompt": "p", "completion": "c"}, "generation", "p", GOLD),
        ({"prompt": "p"}, "generation", "p", UNLABELLED),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference", "p\nc\nr", GOLD),
        ({"text": "t", "positive": "p"}, "embedding", "t\np", GOLD),
        ({"text": "t", "positive": "p", "negative": "n"}, "embedding", "t\np\nn", GOLD),
    ],
)
def test_other_kinds(tmp_path: Path, row: dict[str, Any], kind: str, text: str, ranked: int) -> None:
    rows = rows_of(tmp_path, [row])
    assert (rows.kind, rows.text(0), rows.ranks.tolist(), rows.labels) == (kind, text, [ranked], [None])


def test_order_of_labels_is_no_difference(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [{"text": "a", "labels": ["y", "x"]}, {"text": "a", "labels": ["x", "y"]}])
    assert rows.answers[0] == rows.answers[1]
    assert not np.isin(NO_ANSWER, rows.answers)


def test_a_template_says_what_is_compared(tmp_path: Path) -> None:
    row = {"prompt": "at nine", "asked": ["time"], "completion": "{}"}
    assert rows_of(tmp_path, [row], template="{prompt} ({asked})").text(0) == 'at nine (["time"])'
    with pytest.raises(DataError, match=r"rows.jsonl:1.*other"):
        rows_of(tmp_path, [row], template="{other}")


def test_a_wrong_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2"):
        rows_of(tmp_path, [{"text": "a"}, {"text": 1}])
    with pytest.raises(DataError, match="ids are unique"):
        rows_of(tmp_path, [{"text": "a", "id": 1}, {"text": "b", "id": 1}])
