"""The file of feedback: written so that what was promised is there, read so that a killed writer does no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.feedback import Feedback, FeedbackWriter, latest, read_feedback
from adapterhub.data.rows import RowRules, to_example
from adapterhub.errors import DataError, FileMissing

LINE = Feedback(
    "clsf-1",
    0,
    "2026-01-31T12:00:00Z",
    "tone",
    "tone@prod",
    "sha256:ab",
    "classification",
    {"fields": {"text": "Hi", "shop": "x"}},
    {"label": "calm", "probs": {"calm": 0.7, "glad": 0.3}},
    {"label": "glad"},
    "shop",
)
WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from adapterhub.data.feedback import FeedbackWriter, read_feedback
line = next(read_feedback(Path(sys.argv[2])))
for number in range(100_000):
    FeedbackWriter(Path(sys.argv[1])).add(replace(line, index=number))
    print(number, flush=True)
"""


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "feedback.jsonl"
    multilabel = replace(LINE, kind="multilabel", predicted={"labels": ["b", "a"]}, right={"labels": ["a", "b"]})
    base = replace(LINE, task=None, digest=None, key=None, kind="generation", input={"text": "a\nü\u2028"})
    lines = [LINE, multilabel, replace(base, predicted={"completion": "x"}, right={"completion": "y"})]
    for line in lines:
        FeedbackWriter(path).add(line)
    assert list(read_feedback(path)) == lines
    assert [line.agrees for line in lines] == [False, True, False]
    assert path.stat().st_mode & 0o777 == 0o600


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(text=TEXT, cut=st.integers(0, 400))
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, text: str, cut: int
) -> None:
    path = tmp_path_factory.mktemp("feedback") / "feedback.jsonl"
    line = replace(LINE, input={"fields": {"text": text}})
    for number in range(3):
        FeedbackWriter(path).add(replace(line, index=number))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = path.read_bytes().count(b"\n")
    assert [each.index for each in read_feedback(path)] == list(range(kept))
    FeedbackWriter(path).add(replace(line, index=9))
    assert [each.index for each in read_feedback(path)] == [*range(kept), 9]


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    FeedbackWriter(path).add(LINE)
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    FeedbackWriter(path).add(replace(LINE, index=1))
    assert [line.index for line in read_feedback(path)] == [0, 1]


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path, given_line = tmp_path / "feedback.jsonl", tmp_path / "given.jsonl"
    FeedbackWriter(given_line).add(LINE)
    command = [sys.executable, "-c", WRITER, str(path), str(given_line)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(20)]
        child.kill()
        told += [int(line) for line in child.stdout if line.endswith("\n")]
    found = [line.index for line in read_feedback(path)]
    assert found[: len(told)] == told
    assert len(found) <= len(told) + 1


def test_many_writers_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: FeedbackWriter(path).add(replace(LINE, index=number)), range(50)))
    assert sorted(line.index for line in read_feedback(path)) == list(range(50))


def test_the_last_word_counts() -> None:
    lines = [LINE, replace(LINE, index=1), replace(LINE, right={"label": "calm"})]
    assert latest(iter(lines)) == [lines[2], lines[1]]


def test_lines_become_rows() -> None:
    row = LINE.to_row()
    assert row == {"text": "Hi", "shop": "x", "label": "glad", "id": "clsf-1-0", "source": "feedback"}
    example = to_example(row, RowRules("classification", ("calm", "glad")), "here")
    assert example.fields["label"] == "glad"
    turns = {"fields": {"messages": [{"role": "user", "content": "Hi"}]}}
    chat = replace(LINE, kind="generation", input=turns, right={"completion": "Hello"})
    assert to_example(chat.to_row(), RowRules("generation"), "here").fields["completion"] == "Hello"
    for past in ({"text": "Hi"}, {"token_ids": [1, 2]}):
        with pytest.raises(DataError, match="past the task's template"):
            replace(LINE, input=past).to_row()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format"),
        ({"id": 3}, "id"),
        ({"index": True}, "index"),
        ({"input": "Hi"}, "input"),
        ({"kind": "embedding"}, "kind"),
        ({"right": {"labels": ["a"]}}, "right label"),
        ({"kind": "multilabel", "right": {"labels": "a"}}, "right labels"),
    ],
)
def test_a_wrong_line_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "feedback.jsonl"
    FeedbackWriter(path).add(LINE)
    with path.open("a") as file:
        file.write(json.dumps({**LINE.to_record(), **change}) + "\n")
    with pytest.raises(DataError, match=f"jsonl:2: .*{said}"):
        list(read_feedback(path))


def test_what_is_no_json_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_text("{\n")
    with pytest.raises(DataError, match="jsonl:1"):
        list(read_feedback(path))
    with pytest.raises(FileMissing):
        list(read_feedback(tmp_path / "none"))
