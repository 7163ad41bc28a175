"""`adapterhub label review` and `correct`: questions in the terminal, tables out and in, corrections put to use."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapterhub.cli.main import create_app
from adapterhub.errors import UsageError
from adapterhub.labeling.corrections import read_corrections
from adapterhub.labeling.votes import read_votes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"id": "{n}", "text": "[b]text {n}"}}\n' for n in range(1, 5)))
    (tmp_path / "votes.csv").write_text("id,x,y,z\n1,calm,angry,\n2,calm,angry,angry\n3,,,\n4,calm,calm,\n")
    return tmp_path


def invoke(folder: Path, *arguments: str, keys: str = "") -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(create_app(), ["label", *arguments], input=keys)


def review(folder: Path, *more: str, keys: str = "", file: str = "votes.csv") -> Result:
    files = [str(folder / file), "--data", str(folder / "rows.jsonl"), "--corrections", str(folder / "c.jsonl")]
    return invoke(folder, "review", *files, "--by", "mara", *more, keys=keys)


def answers(folder: Path) -> list[tuple[str, str]]:
    return [(each.id, each.label) for each in read_corrections(folder / "c.jsonl")]


def test_questions_and_answers(folder: Path) -> None:
    result = review(folder, keys="nonsense\n1\ns\nq\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert answers(folder) == [("1", "angry")]
    for words in (
        "[1/3] voters disagree",
        "[b]text 1",
        "1  angry  0.50",
        "'nonsense' is no label",
        "1 of 3 rows answered",
    ):
        assert words in result.stderr
    found = read_corrections(folder / "c.jsonl")[0]
    assert (found.by, found.old, found.text) == ("mara", None, "[b]text 1")
    assert found.at.endswith("Z")
    again = review(folder, "--labels", "calm, delighted", keys="ca\ndelighted\n")
    assert "[1/2]" in again.stderr  # what was answered is not asked again
    assert answers(folder) == [("1", "angry"), ("2", "calm"), ("3", "delighted")]


def test_the_end_of_the_input_ends_the_questions(folder: Path) -> None:
    result = review(folder, "--json", "--limit", "2", keys="angry\n")
    assert json.loads(result.stdout) == {"corrections": 1}
    assert answers(folder) == [("1", "angry")]


def test_labels_that_are_numbers_have_no_keys(folder: Path) -> None:
    (folder / "votes.csv").write_text("id,x,y\n1,2,3\n2,2,s\n")
    result = review(folder, keys="1\n3\ns\n")
    assert "'1' is no label" in result.stderr
    assert answers(folder) == [("1", "3"), ("2", "s")]


def test_an_audit_s_queue_shows_the_label_of_now(folder: Path) -> None:
    (folder / "queue.csv").write_text("id,given,suggested,score,text\n1,calm,angry,0.5,hm\n")
    result = review(folder, file="queue.csv", keys="2\n")
    assert "2  calm  (its label now)" in result.stderr
    found = read_corrections(folder / "c.jsonl")[0]
    assert (found.old, found.label) == ("calm", "calm")  # a label that somebody confirmed


def test_a_table_out_and_back(folder: Path) -> None:
    table = folder / "table.csv"
    result = review(folder, "--export", str(table), "--json")
    assert json.loads(result.stdout) == {"rows": 3}
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["label"] = "calm"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "1 corrections added" in review(folder, "--import", str(table)).stderr
    assert "0 corrections added" in review(folder, "--import", str(table)).stderr
    assert answers(folder) == [("1", "calm")]
    assert isinstance(review(folder, "--export", str(folder / "c.jsonl")).exception, UsageError)
    assert answers(folder) == [("1", "calm")]
    table.write_text("id,label\nnobody,calm\n")
    assert "1 are of rows that" in review(folder, "--import", str(table)).stderr
    assert isinstance(review(folder, "--import", str(table), "--export", str(table)).exception, UsageError)


def test_corrections_become_gold_and_labels(folder: Path) -> None:
    review(folder, "--limit", "1", keys="calm\n")
    files = ["--corrections", str(folder / "c.jsonl"), "--out"]
    votes = invoke(folder, "correct", str(folder / "votes.csv"), *files, str(folder / "v2.csv"), "--votes", "--json")
    assert json.loads(votes.stdout) == {"corrections": 1, "unknown": 0}
    assert read_votes(folder / "v2.csv").column("gold") == ["calm", None, None, None]
    (folder / "rows.jsonl").write_text('{"id": "9", "text": "other"}\n')
    result = invoke(folder, "correct", str(folder / "rows.jsonl"), *files, str(folder / "r2.jsonl"))
    assert "0 corrections are in" in result.stderr
    assert "1 are of rows that" in result.stderr


def test_who_answers_where_nobody_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(folder / "votes.csv"), "--data", str(folder / "rows.jsonl"), "--corrections", str(folder / "c.jsonl")]
    monkeypatch.setenv("LOGNAME", "ben")
    invoke(folder, "review", *files, keys="1\n")
    assert read_corrections(folder / "c.jsonl")[0].by == "ben"
    monkeypatch.setattr("getpass.getuser", lambda: {}["nobody"])
    assert "--by" in str(invoke(folder, "review", *files, keys="1\n").exception)
