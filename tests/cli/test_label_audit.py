"""`adapterhub label audit` as people and scripts call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapterhub.cli.main import create_app
from tests.pipeline.test_audit import made, write
from tests.tiny import make_tiny_base


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_base(tmp_path / "base")
    write(tmp_path / "rows.jsonl", made(60)[0])
    return tmp_path


def invoke(folder: Path, *more: str) -> Result:
    environment = {"ADAPTERHUB_CACHE": str(folder / "cache"), "COLUMNS": "160"}
    arguments = ["label", "audit", str(folder / "rows.jsonl"), "--base", str(folder / "base")]
    return CliRunner(env=environment).invoke(create_app(), [*arguments, *more])


def test_scripts_read_the_rows_most_suspicious_first(folder: Path) -> None:
    result = invoke(folder, "--json", "--alike", "1")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found[0].keys() >= {"id", "given", "suggested", "score"}
    assert found[0]["id"] in made(60)[1]
    assert found == sorted(found, key=lambda each: -each["score"])
    assert "60 texts through" in result.stderr


def test_people_read_a_table_and_get_a_queue(folder: Path) -> None:
    result = invoke(folder, "--out", str(folder / "queue.csv"), "--alike", "0.5")
    assert result.stdout == ""
    for words in ("doubtful labels in 60 rows", "pairs of rows say nearly the same", "adapterhub label review"):
        assert words in result.stderr
    assert (folder / "queue.csv").read_text().startswith("id,given,suggested,score,")


def test_nothing_to_doubt(folder: Path) -> None:
    rows = [("apple pear", "fruit")] * 30 + [("saw drill", "tool")] * 30
    write(folder / "rows.jsonl", rows)
    assert "no doubtful labels in 60 rows" in invoke(folder).stderr
    assert json.loads(invoke(folder, "--json").stdout) == []
