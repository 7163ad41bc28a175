"""Several recipes at once: those of one base train together, and none stops another."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import AdapterHubError, ConfigError, RefNotFound, UsageError
from adapterhub.pipeline.build import BuildResult, build, build_all
from adapterhub.pipeline.prepare import prepare
from adapterhub.pipeline.probe import Probed, probe_all
from adapterhub.pipeline.runs import held, run_folder
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from tests.pipeline.toys import write_recipe
from tests.training.jobs import Recorder, toy_rows

SHORT = {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def together(folder: Path, *paths: Path, **options: Any) -> list[BuildResult | AdapterHubError]:
    recipes = [load_recipe(path) for path in paths]
    return build_all(recipes, Registry(folder / "registry"), Recorder(), **options)


def test_recipes_of_one_base_are_published_each_by_itself_and_a_failure_stops_none(tmp_path: Path) -> None:
    good = write_recipe(tmp_path, "one", training=SHORT)
    bad = write_recipe(tmp_path, "two", training=SHORT, lora={"targets": ["nothing_like_it"]})
    other = write_recipe(tmp_path, "three", training={**SHORT, "seed": 5}, lora={"rank": 2, "layers": "top-1"})
    heard: list[str] = []
    first, second, third = together(tmp_path, good, bad, other, tell=lambda result: heard.append(result.published.task))
    assert isinstance(first, BuildResult)
    assert isinstance(second, ConfigError)
    assert "nothing_like_it" in str(second)
    assert isinstance(third, BuildResult)
    assert heard == ["one", "three"]
    registry = Registry(tmp_path / "registry")
    assert registry.resolve("one").digest == first.published.digest
    assert registry.resolve("three").digest == third.published.digest
    with pytest.raises(RefNotFound):
        registry.resolve("two")


def test_together_gives_what_each_gives_alone_but_for_rounding(tmp_path: Path) -> None:
    paths = [write_recipe(tmp_path, name, lora={"rank": rank}) for name, rank in (("one", 4), ("two", 8))]
    joint = together(tmp_path, *paths)
    for path, result in zip(paths, joint, strict=True):
        assert isinstance(result, BuildResult)
        alone = build(load_recipe(path), Registry(tmp_path / "alone"), Recorder())
        assert result.training.steps == alone.training.steps
        assert result.training.best is not None
        assert alone.training.best is not None
        assert result.training.best.loss == pytest.approx(alone.training.best.loss, rel=1e-3)
        assert result.metrics["accuracy"].value == alone.metrics["accuracy"].value


def test_two_recipes_of_one_task_become_two_versions(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "one", training=SHORT)
    again = tmp_path / "again.yaml"
    again.write_text(path.read_text().replace("epochs: 1", "epochs: 2"))
    first, second = together(tmp_path, path, again)
    assert isinstance(first, BuildResult)
    assert isinstance(second, BuildResult)
    assert (first.published.ref, second.published.ref) == ("one@1", "one@2")


def test_a_journal_and_a_plot_remain_and_no_checkpoint(tmp_path: Path) -> None:
    result = build(load_recipe(write_recipe(tmp_path)), Registry(tmp_path / "registry"), Recorder())
    assert result.journal is not None
    assert result.journal.is_relative_to(tmp_path / "cache" / "runs")
    assert {each.name for each in result.journal.iterdir()} == {"train.jsonl", "loss.png"}
    assert (result.journal / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(result.journal.parent.glob("*.safetensors")) == []


KILLED = """
import os, sys
from pathlib import Path
from adapterhub.pipeline.build import build
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from adapterhub.training import loop
from tests.training.jobs import Recorder, toy_rows

loop.SNAPSHOT_STEPS, loop.CHECKPOINT_SECONDS = 2, 0.0

class Dying(Recorder):
    def step(self, task, report):
        if report.step == 7:
            os.kill(os.getpid(), 9)

build(load_recipe(sys.argv[1]), Registry(Path(sys.argv[2])), Dying())
"""


def test_a_killed_training_is_resumed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(tmp_path, lora={"dropout": 0.2})
    registry = Registry(tmp_path / "registry")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(registry.root)], timeout=300)
    assert killed.returncode == -9
    assert not registry.root.exists() or registry.tasks() == []
    progress = Recorder()
    (resumed,) = build_all([load_recipe(path)], registry, progress, resume=True)
    assert isinstance(resumed, BuildResult)
    assert "going on from the checkpoint: toy at step 6 of 20" in progress.told
    assert progress.steps[0].step == 7
    whole = build(load_recipe(path), Registry(tmp_path / "whole"), Recorder())
    assert resumed.published.digest == whole.published.digest
    again = Recorder()
    build_all([load_recipe(path)], registry, again, resume=True)
    assert "no checkpoint: from the beginning" in again.told


def test_a_version_to_begin_at(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first = build(load_recipe(write_recipe(tmp_path)), registry, Recorder())
    path = write_recipe(tmp_path, "next", init="toy@1", training={**SHORT, "steps": 1, "epochs": None})
    second = build(load_recipe(path), registry, Recorder())
    assert second.metrics["accuracy"].value >= first.metrics["accuracy"].value - 0.1
    assert registry.resolve("next").card().training["init"] == first.published.digest
    with pytest.raises(RefNotFound):
        prepare(load_recipe(write_recipe(tmp_path, "lost", init="nobody")), registry, Recorder())


def test_a_run_has_one_place_and_one_process(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    jobs = [prepare(load_recipe(write_recipe(tmp_path, name)), registry, Recorder()) for name in ("one", "two")]
    folder = run_folder(jobs)
    assert folder == run_folder(jobs)
    assert folder.name.startswith("one-and-1-more-")
    assert len({run_folder(jobs), run_folder(jobs[:1]), run_folder(jobs[1:]), run_folder(jobs[::-1])}) == 4
    refused: list[str] = []

    def second() -> None:
        try:
            with held(folder):
                refused.append("")
        except UsageError as error:
            refused.append(str(error))

    with held(folder):
        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert "another process is training exactly this" in refused[0]
    with held(folder):
        pass


def test_an_unknown_tracker_is_refused_before_training(tmp_path: Path) -> None:
    (outcome,) = together(tmp_path, write_recipe(tmp_path), tracker="nobody-knows-it")
    assert isinstance(outcome, UsageError)
    assert "nobody-knows-it" in str(outcome)


def test_a_probe_trains_and_publishes_nothing(tmp_path: Path) -> None:
    good = write_recipe(tmp_path, "one")
    top = write_recipe(tmp_path, "two", lora={"layers": "top-1"})
    bad = write_recipe(tmp_path, "three", lora={"targets": ["nothing_like_it"]})
    registry = Registry(tmp_path / "registry")
    found = probe_all([load_recipe(path) for path in (good, top, bad)], registry, Recorder())
    assert isinstance(found[2], ConfigError)
    assert not registry.root.exists() or registry.tasks() == []
    for each in found[:2]:
        assert isinstance(each, Probed)
    result = build(load_recipe(good), registry, Recorder())
    assert isinstance(found[0], Probed)
    assert isinstance(found[1], Probed)
    whole, part = found[0].probe, found[1].probe
    assert whole.steps == result.training.steps == 20
    assert whole.adapter_bytes == (result.published.path / "adapter_model.safetensors").stat().st_size
    assert whole.trainable_parameters == result.training.trainable_parameters
    assert whole.tokens == 4 * sum(len(row.text) for row in toy_rows(80))  # a token a byte, four epochs
    assert whole.longest_row == max(len(row.text) for row in [*toy_rows(80), *toy_rows(20, seed=1)])
    assert part.adapter_bytes < whole.adapter_bytes
    assert whole.seconds > 0
    assert found[0].to_record()["task"] == "one"
