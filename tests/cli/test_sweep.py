from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from adapterhub.cli.main import run
from adapterhub.recipe import load_recipe
from tests.pipeline.toys import write_recipe


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(["sweep", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_a_sweep_says_what_was_best_and_how_to_train_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path, training={"epochs": 1, "batch_size": 16})
    asked = (path, "--registry", tmp_path / "r", "--grid", "training.learning_rate=1e-6,5e-3,1e-2", "--keep", "0.9")
    assert command(*asked, "--budgets", "0.5,1", "--json") == 0
    said = capsys.readouterr()
    (record,) = [json.loads(line) for line in said.out.splitlines()]
    assert record["rows"] == [40, 80]
    assert len(record["trials"]) == 3
    err = said.err.replace("\n", " ")
    assert f"--set training.learning_rate={record['best']['training.learning_rate']}" in err
    assert "rank correlation between 40 and 80 rows" in err
    assert "40 rows" in err


def test_what_is_best_can_be_pasted_into_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path, training={"epochs": 1, "batch_size": 16})
    asked = (path, "--registry", tmp_path / "r", "--grid", "lora.targets=[q_proj, v_proj],[down_proj]")
    assert command(*asked, "--budgets", "0.2") == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("best: "))
    words = shlex.split(line.removeprefix("best: "))
    assert words[:4] == ["adapterhub", "train", str(path), "--set"]
    assert load_recipe(path, [words[4]]).lora.targets in {("q_proj", "v_proj"), ("down_proj",)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "needs something to vary"),
        (("--grid", "lora.rank=2,4", "--budgets", "a,b"), "--budgets a,b"),
        (("--search", "lora.rank=2..9:int"), "--trials"),
    ],
)
def test_wrong_calls_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert command(write_recipe(tmp_path), "--registry", tmp_path / "r", *options) != 0
    assert said in capsys.readouterr().err.replace("\n", " ")
