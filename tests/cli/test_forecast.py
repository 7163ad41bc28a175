"""`adapterhub data forecast`: what scripts read, what people read, where the picture lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from adapterhub.cli.data import register
from adapterhub.cli.data.coverage import told_of
from adapterhub.cli.data.forecast import _needed
from adapterhub.curation.coverage import Coverage, LabelCount
from adapterhub.curation.forecast import Need
from adapterhub.errors import UsageError
from tests.pipeline.toys import write_recipe
from tests.tiny import make_tiny_base


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_tiny_base(tmp_path / "encoder", "bert")
    write_recipe(tmp_path)
    return tmp_path


def run(*arguments: str, by: str = "heads") -> Result:
    app = typer.Typer()
    register(app)
    common = ["data", "forecast", "toy.yaml", "--by", by, "--base", "./encoder", "--registry", "registry"]
    return CliRunner().invoke(app, [*common, *arguments])


def test_scripts_read_one_record(home: Path) -> None:
    result = run("--target", "99.9%", "--json")
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    assert [each["n"] for each in found["ladder"]] == [10, 20, 40, 80]
    assert [each["n"] for each in found["forecast"]] == [160, 320]
    for each in (*found["ladder"], *found["forecast"]):
        assert each.keys() == {"n", "error", "low", "high"}
        assert 0 <= each["low"] <= each["error"] <= each["high"] <= 1
    assert {"form", "a", "b", "c"} <= found["fit"].keys()
    assert found["backtest"]["n"] == 80
    assert found["need"]["error"] == pytest.approx(0.001)
    assert Path(found["plot"]).is_file()
    assert Path(found["plot"]).is_relative_to(home / "cache")


def test_people_read_a_table_and_what_follows(home: Path) -> None:
    result = run("--sizes", "10,20,40,80", "--seeds", "2", "--target", "0.2", "--out", "made/here")
    assert result.stdout == ""
    for said in ("foretold, 4 times the rows", "curve: error =", "tested on 80 rows", "20.0% is reached with", "blue:"):
        assert said in result.stderr
    assert (home / "made/here/forecast.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((home / "made/here/forecast.json").read_text())["seeds"] == 2
    assert run("--out", "curve.png", "--sizes", "10,40,80").exit_code == 0
    assert (home / "curve.png").is_file()
    assert "tested on" not in run("--out", "curve.png", "--sizes", "10,40,80").stderr


def test_wrong_options_are_refused(home: Path) -> None:
    for arguments, said in (
        (("--sizes", "10,many"), "numbers of rows"),
        (("--target", "120%"), "--target"),
        (("--out", "nowhere/curve.png"), "there is no folder"),
        (("--out", "toy.yaml"), "cannot be a folder"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, UsageError)
        assert said in str(error)
    assert isinstance(run(by="guess").exception, UsageError)


def test_what_is_said_of_a_target() -> None:
    assert "is reached with 50 rows" in _needed(Need(0.05, "reached", 50, 40, 60), 400)
    told = _needed(Need(0.05, "reachable", 150, 120, None), 400)
    assert "95.0% takes about 150 rows, between 120 and more than that (beyond 400 nothing is said)" in told
    assert "perhaps reached, from 300 rows on at best" in _needed(Need(0.05, "perhaps", None, 300, None), 400)
    assert "not reachable by data alone" in _needed(Need(0.05, "not reachable by data alone", None, None, None), 400)


def test_what_is_said_of_labels() -> None:
    labels = tuple(LabelCount(f"l{place}", place, 9, 0.5) for place in range(8))
    told = told_of(Coverage(labels, 0.9, 0.021, 0.8, 100, 4, fitted=True), "label").splitlines()
    assert told[0] == "twice the rows of a label: +2.1 points of its accuracy, on average"
    assert told[1] == "a label needs about 100 rows for 90.0%"
    assert told[2] == "8 of 8 labels have not even half of that"
    assert told[3] == "  l0: 0 rows, 100 too few"
    assert told[-1] == "  and 3 more, see --json"
    told = told_of(Coverage(labels, 0.9, None, None, None, 4, fitted=True), "label").splitlines()
    assert told == [
        "the curve over all labels does not reach 90.0%; half of them have 4 rows or more",
        "2 of 8 labels have not even half of that",
        "  l0: 0 rows, 4 too few",
        "  l1: 1 rows, 3 too few",
    ]
