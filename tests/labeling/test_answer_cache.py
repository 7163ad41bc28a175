"""Answers are kept whole, by several at once, and a damaged file costs no more than asking again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.labeling.answer_cache import AnswerCache


def test_what_is_put_is_there(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "deep" / "answers.sqlite")
    cache.put({f"key {number}": [number, -0.5] for number in range(1200)})
    again = AnswerCache(tmp_path / "deep" / "answers.sqlite")
    found = again.get([*(f"key {number}" for number in range(1300)), "key 0"])
    assert found == {f"key {number}": [number, -0.5] for number in range(1200)}


def test_a_file_that_is_no_database_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"no database at all" * 100)
    cache = AnswerCache(path)
    cache.put({"a": 1})
    assert cache.get(["a"]) == {"a": 1}


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").mkdir()
    with pytest.raises(OSError, match=r"answers\.sqlite"):
        AnswerCache(tmp_path / "answers.sqlite")


def test_two_processes_put_at_once(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    code = (
        "import sys; from pathlib import Path; from adapterhub.labeling.answer_cache import AnswerCache\n"
        "cache = AnswerCache(Path(sys.argv[1]))\n"
        "[cache.put({f'{sys.argv[2]} {n}': n}) for n in range(50)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [each.wait(60) for each in running] == [0, 0]
    wanted = {f"{name} {number}": number for name in "ab" for number in range(50)}
    assert AnswerCache(path).get(wanted) == wanted
