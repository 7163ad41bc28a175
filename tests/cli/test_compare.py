"""`registry compare|diff|promote|verify --run` and `rebase` as people type them, on a tiny task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapterhub.cli.main import create_app
from adapterhub.errors import Conflict
from adapterhub.pipeline.build import build
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from tests.pipeline.toys import write_recipe
from tests.tiny import make_tiny_base
from tests.training.jobs import Recorder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_CACHE", str(folder / "cache"))
        recipe = write_recipe(folder)
        for length in ("training.steps=1", "training.epochs=4"):
            build(load_recipe(recipe, [length]), Registry(folder / "registry"), Recorder())
        make_tiny_base(folder / "other", seed=3)
        yield folder


def invoke(world: Path, *arguments: str) -> Result:
    environment = {"ADAPTERHUB_CACHE": str(world / "cache"), "COLUMNS": "160"}
    return CliRunner(env=environment).invoke(create_app(), [*arguments, "--registry", str(world / "registry")])


def ask(world: Path, *arguments: str) -> Any:
    result = invoke(world, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def base(world: Path, option: str = "--base") -> tuple[str, str]:
    """The base is a folder, which no card may name."""
    return option, str(world / "base")


def test_compare(world: Path) -> None:
    arguments = ("registry", "compare", "toy@1", "toy@2", "--data", str(world / "test.jsonl"), *base(world))
    found = ask(world, *arguments)
    assert (found["first"]["ref"], found["second"]["ref"], found["rows"]) == ("toy@1", "toy@2", 30)
    assert len(found["differing"]) >= found["mcnemar"]["gained"] > 0
    result = invoke(world, *arguments, "--rows", "2")
    assert result.stdout == ""
    for word in (
        "accuracy",
        "macro_f1",
        "difference",
        "McNemar's exact p",
        f"2 of {len(found['differing'])} rows that",
    ):
        assert word in result.stderr


def test_diff(world: Path) -> None:
    found = ask(world, "registry", "diff", "toy@1", "toy@2")
    assert found["recipe"]["training.epochs"] == {"first": None, "second": 4.0}
    assert found["data"]["train"]["same"]
    text = invoke(world, "registry", "diff", "toy@1", "toy@2").stderr
    for word in ("training.epochs", "80, the same", "norm of the weight change", "apart", "score.weight"):
        assert word in text
    assert "the recipes say the same" in invoke(world, "registry", "diff", "toy@1", "toy@1").stderr


def test_promote_through_a_gate(world: Path) -> None:
    gate = ("--metric", "accuracy", "--data", str(world / "test.jsonl"), *base(world))
    ask(world, "registry", "promote", "toy@1")
    moved = ask(world, "registry", "promote", "toy@2", *gate)
    assert moved["version"] == 2
    assert moved["comparison"]["differences"]["accuracy"]["least"] > 0
    refused = invoke(world, "registry", "promote", "toy@1", *gate)
    assert isinstance(refused.exception, Conflict)
    people = invoke(world, "registry", "promote", "toy@1", *gate, "--margin", "1", "--why", "try")
    assert "toy@prod is now toy@1" in people.stderr
    assert "McNemar" in people.stderr


def test_verify_run(world: Path) -> None:
    assert ask(world, "registry", "verify", "--run", *base(world)) == {"ok": True, "problems": [], "notes": []}


def test_rebase(world: Path) -> None:
    arguments = ("rebase", "toy@2", "--base", str(world / "other"), "--data", str(world), *base(world, "--old-base"))
    found = ask(world, *arguments)
    assert (found["old"]["ref"], found["new"]["ref"]) == ("toy@2", "toy-other@1")
    result = invoke(world, *arguments, "--suffix", "again", "--set", "training.epochs=1")
    assert result.exit_code == 0, result.output
    for word in ("toy@2 to toy-again@1", "accuracy", "rows answered a second"):
        assert word in result.stderr
    failed = invoke(world, *arguments, "--suffix", "worse", "--set", "lora.targets=[none]")
    assert failed.exit_code == 1
    assert "Error: toy@2:" in failed.stderr
