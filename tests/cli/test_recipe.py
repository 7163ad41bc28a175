from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from adapterhub.cli.recipe import register
from tests.tiny import make_tiny_base

ROWS = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(40)]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    make_tiny_base(tmp_path / "tiny")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = tmp_path / "recipe.yaml"
    file.write_text("{task: letters, base: ./tiny, kind: classification, data: {train: train.jsonl}}")
    return file


def run(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["recipe", "check", *arguments])


def test_people_read_stderr(recipe: Path) -> None:
    result = run(str(recipe), "--set", "training.epochs=1")
    assert (result.exit_code, result.stdout) == (0, "")
    for piece in (
        "letters (classification on ./tiny) fine",
        "train.jsonl",
        "40 rows  train.jsonl (2 labels, 20 each)",
        "steps    2,",
        "(estimate)",
    ):
        assert piece in result.stderr


def test_scripts_read_one_json_object_a_recipe(recipe: Path) -> None:
    result = run(str(recipe), str(recipe), "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["task"] == second["task"] == "letters"
    assert first["ok"] is True
    assert first["splits"]["train"] == {
        "source": "train.jsonl",
        "rows": 40,
        "labels": {"a": 20, "b": 20},
        "texts": {},
    }
    assert first["estimate"]["steps"] == 6
    assert result.stderr == ""


def test_pairs_are_shown_with_their_texts(recipe: Path) -> None:
    rows = [{"text": f"t{n}", "positive": f"p{n % 2}", "negative": "q"} for n in range(20)]
    (recipe.parent / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(str(recipe), "--set", "kind=embedding", "--set", "data={train: pairs.jsonl}")
    assert "20 rows  pairs.jsonl (20 texts, 2 positives, 1 negatives)" in result.stderr


def test_all_files_are_reported_where_one_is_bad(recipe: Path) -> None:
    bad = recipe.with_name("bad.yaml")
    bad.write_text("{task: letters, bse: x}")
    result = run(str(bad), str(recipe))
    assert result.exit_code == 1
    assert "did you mean 'base'?" in result.stderr
    assert "would not train" in result.stderr
    assert "letters (classification on ./tiny) fine" in result.stderr
    result = run(str(bad), str(recipe), "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["ok"] for line in result.stdout.splitlines()] == [False, True]


def test_warnings_and_notes_do_not_fail(recipe: Path) -> None:
    with recipe.with_name("train.jsonl").open("a") as file:
        file.write('{"text": "text 0", "label": "a"}\n')
    result = run(str(recipe), "--set", "base=smollm2-135m-instruct")
    assert result.exit_code == 0
    assert "1 row with the text of an earlier one" in result.stderr
    assert "adapterhub base pull smollm2-135m-instruct" in result.stderr


def test_labels_are_counted(recipe: Path) -> None:
    def shown(labels: list[str]) -> str:
        rows = [{"text": str(n), "label": f"[{label}]"} for n, label in enumerate(labels)]
        recipe.with_name("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        stderr = run(str(recipe), "--set", "data.validation=train.jsonl").stderr
        assert f"validation and train share {len(labels)} texts" in stderr
        return stderr

    assert "train.jsonl ([b] 2, [a] 1)\n" in shown(["a", "b", "b"])
    assert "train.jsonl (12 labels, 1 to 3 each)\n" in shown([*"abcdefghijklaa"])


def test_durations_are_for_people() -> None:
    from adapterhub.cli.recipe import duration

    assert [duration(seconds) for seconds in (0.1, 89, 91, 3600, 9000)] == ["1 s", "89 s", "2 min", "60 min", "2.5 h"]
