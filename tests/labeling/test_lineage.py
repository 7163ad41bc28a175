"""A lineage speaks of the file it was written for, and of no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.errors import DataError
from adapterhub.labeling.lineage import lineage_path, read_lineage, write_lineage


def test_lineage_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    assert read_lineage(path) is None
    write_lineage(path, {"voters": {"rule": {"hash": "ab"}}})
    found = read_lineage(path)
    assert found is not None
    assert found["voters"] == {"rule": {"hash": "ab"}}
    path.write_text("{} \n")
    assert read_lineage(path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 9, "sha256": ""}'])
def test_what_is_no_lineage_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    lineage_path(path).write_text(text)
    with pytest.raises(DataError):
        read_lineage(path)
