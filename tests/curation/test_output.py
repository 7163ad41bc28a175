"""What is written: every row once, as it was, and the old files until the new ones are whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adapterhub.curation.output import check_output, dropped_path, explained, write_rows, write_split
from adapterhub.curation.page import write_page
from adapterhub.errors import UsageError
from adapterhub.registry.disk import replacing
from tests.curation.making import rows_of

ROWS = [{"text": "a", "label": "<x>"}, {"text": "b & <b>", "label": "y", "reason": "mine"}, {"text": "ç"}]


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_stay_as_they_were(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path, ROWS), tmp_path / "out.jsonl"
    assert write_split(out, rows, {1: {"reason": "near", "kept_id": "7"}}) == (2, 1)
    assert lines(out) == [ROWS[0], ROWS[2]]
    assert dropped_path(out).name == "out.jsonl.dropped.jsonl"
    assert lines(dropped_path(out)) == [
        {"reason": "near", "kept_id": "7", "text": "b & <b>", "label": "y", "own_reason": "mine"}
    ]
    assert write_split(out, rows, {}, first=1) == (2, 0)
    assert lines(out) == ROWS[1:]
    assert lines(dropped_path(out)) == []
    assert write_rows(out, rows, [2, 0], lambda row, record: {**record, "row": row}) == 2
    assert lines(out) == [{**ROWS[2], "row": 2}, {**ROWS[0], "row": 0}]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")

    def write_half() -> None:
        with replacing(out) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert out.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_where_rows_cannot_go(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("")
    with pytest.raises(UsageError, match=r"\.jsonl file"):
        check_output(tmp_path / "out.csv", source)
    with pytest.raises(UsageError, match="no folder"):
        check_output(tmp_path / "none" / "out.jsonl")
    with pytest.raises(UsageError, match="no row is lost"):
        check_output(tmp_path / "." / "rows.jsonl", source)
    check_output(tmp_path / "out.jsonl", source, tmp_path / "absent.jsonl", None)
    with pytest.raises(UsageError, match="--page would write"):
        check_output(tmp_path / "out.jsonl", source, page=source)
    gone = tmp_path / "rows.jsonl.dropped.jsonl"  # rows that went from rows.jsonl, read to be put there
    gone.write_text("")
    with pytest.raises(UsageError, match=r"rows\.jsonl\.dropped\.jsonl', which is also read"):
        check_output(source, gone, drops=True)
    check_output(tmp_path / "other.jsonl", gone)


def test_reasons_come_first() -> None:
    assert list(explained({"text": "a"}, {"reason": "r"})) == ["reason", "text"]


def test_the_page(tmp_path: Path) -> None:
    rows, page = rows_of(tmp_path, ROWS), tmp_path / "page.html"
    scores = {"el2n": np.array([0.1, 1.2, np.nan], np.float32), "prototype": np.array([0.3, 0.2, 0.1], np.float32)}
    write_page(page, "rows <1>", rows, scores, {1: {"suspect": True, "suggested": "<x>"}})
    text = page.read_text("utf-8")
    for piece in ("rows &lt;1&gt;", "&lt;x&gt; (1)", "without a label (1)", "1.200"):
        assert piece in text
    assert "b &amp; &lt;b&gt; <b>perhaps &lt;x&gt;</b>" in text
    assert text.count("Most suspicious") == 1
    assert text.count("Hardest") == 2  # not for the row without a label
    assert text.count("Most typical") == 3
    write_page(page, "rows", rows, {"prototype": scores["prototype"]}, {})
    assert "Hardest" not in page.read_text("utf-8")
    write_page(page, "rows", rows, {"loss": scores["el2n"]}, {})
    assert "Hardest, by loss" in page.read_text("utf-8")
    assert "typical" not in page.read_text("utf-8")
