"""Rules for outputs in recipes: told when they are wrong, held against the rows, and kept by what is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base.source import open_base
from adapterhub.errors import ConfigError
from adapterhub.pipeline.build import build
from adapterhub.pipeline.check import Report, check_recipe
from adapterhub.pipeline.prepare import make_spec
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from tests.tiny import make_tiny_base
from tests.training.jobs import Recorder

SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["size"],
    "additionalProperties": False,
}
RIGHT = ['{"size": "small"}', '{"size": "large", "count": 3}', '{"size":"small","count":0}']


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def write(folder: Path, train: list[str], output: Any, kind: str = "generation", base: bool = True) -> Path:
    if base:
        make_tiny_base(folder / "base")
    rows = [{"prompt": f"row {number}", "completion": text} for number, text in enumerate(train)]
    if kind == "preference":
        rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "anything"} for row in rows]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "task": "toy",
        "base": "./base" if base else "smollm2-135m-instruct",
        "kind": kind,
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "output": output,
        "training": {"steps": 2, "batch_size": 4},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def about_output(report: Report) -> list[str]:
    assert report.ok, report.problems
    return [warning for warning in report.warnings if "output" in warning]


def test_rows_that_keep_the_rule_are_fine(tmp_path: Path) -> None:
    assert about_output(check_recipe(write(tmp_path, RIGHT, {"json_schema": SCHEMA}))) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('{"size": "huge"}', """after '{"size": "' it may not go on with 'huge"}'"""),
        ('{"count": 3, "size": "small"}', """after '{"' it may not go on with 'count": 3, "size": "'"""),
        ('{"size": "small"', """after '{"size": "small"' it may not end"""),
        ("small", "after '' it may not go on with 'small'"),
    ],
)
@pytest.mark.parametrize("kind", ["generation", "preference"])
def test_a_row_that_breaks_the_rule_is_told_with_its_place(tmp_path: Path, wrong: str, said: str, kind: str) -> None:
    report = check_recipe(write(tmp_path, [*RIGHT, wrong, "{}"], {"json_schema": SCHEMA}, kind))
    first, second = about_output(report)
    assert first == f"train: 2 completions that output does not allow, the first at {tmp_path}/train.jsonl:4: {said}"
    assert second.startswith("validation: 2 completions")


def test_one_row_is_one_completion(tmp_path: Path) -> None:
    (first, _) = about_output(check_recipe(write(tmp_path, ["yes", "no", "maybe"], {"choices": ["yes", "no"]})))
    assert first.startswith("train: 1 completion that output does not allow")


@pytest.mark.parametrize("base", [True, False])
def test_a_rule_that_cannot_be_followed_is_a_problem_even_without_the_base(tmp_path: Path, base: bool) -> None:
    path = write(tmp_path, RIGHT, {"json_schema": {"type": "object", "minProperties": 1, "not": {}}}, base=base)
    (problem,) = check_recipe(path).problems
    assert problem.startswith(f"{path}: output: the JSON schema cannot be followed: Unimplemented keys")


def test_training_refuses_such_a_rule_before_it_begins(tmp_path: Path) -> None:
    path, base = write(tmp_path, RIGHT, {"regex": "(a"}), open_base(str(tmp_path / "base"))
    with pytest.raises(ConfigError, match="output: the regular expression cannot be followed"):
        make_spec(load_recipe(path), base, ())


def test_what_is_trained_keeps_its_rule_wherever_it_answers(tmp_path: Path) -> None:
    result = build(
        load_recipe(write(tmp_path, RIGHT * 3, {"json_schema": SCHEMA})), Registry(tmp_path / "registry"), Recorder()
    )
    registry = Registry(tmp_path / "registry")
    version = registry.resolve("toy")
    record = json.loads((version.path / "task.json").read_text())
    assert record["format"] == 3
    assert json.loads(record["output"]["json_schema"]) == SCHEMA
    assert result.metrics
    with AdapterHub(open_base(str(tmp_path / "base")), registry) as hub:
        for answer in hub.predict("toy", ["row 1", "something else"], max_tokens=190):
            assert json.loads(answer.completion or "")["size"] in ("small", "large")
