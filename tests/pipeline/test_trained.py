"""Adapters that a forecast and a sweep have in common are trained once, whoever comes first."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.pipeline import trained
from adapterhub.pipeline.forecast import Plan as Ladder
from adapterhub.pipeline.forecast import forecast
from adapterhub.pipeline.prepare import Prepared, prepare
from adapterhub.pipeline.space import Space
from adapterhub.pipeline.sweep import Plan, Sweep, sweep
from adapterhub.pipeline.trained import TrainedRuns
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from adapterhub.training.train import Trained, Trainer
from tests.pipeline.toys import write_recipe
from tests.training.jobs import Recorder

SHORT = {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def swept(path: Path, progress: Recorder) -> Sweep:
    plan = Plan(Space.parse(["lora.rank=2,4"], []), None, (0.25, 1.0), 0.5)
    return sweep(path, (), plan, Registry(path.parent / "registry"), progress)


def climbed(path: Path, progress: Recorder) -> list[float]:
    plan = Ladder(by="adapters", sizes=(20, 40, 80), seeds=2)
    registry = Registry(path.parent / "registry")
    return forecast(path, ("lora.rank=4",), plan, registry, progress).forecast.ladder.errors.tolist()


def test_a_forecast_takes_what_a_sweep_has_trained(tmp_path: Path) -> None:
    path, told = write_recipe(tmp_path, training=SHORT), Recorder()
    swept(path, Recorder())
    found = climbed(path, told)
    # The sweep's seed is 0: of six rungs it has trained those of all rows and of a quarter of them.
    assert set(told.steps_of) == {"toy-20-1", "toy-40-0", "toy-40-1", "toy-80-1"}
    # The same as where all of them are trained for it.
    for name in ("trained", "forecasts"):
        shutil.rmtree(tmp_path / "cache" / name)
    assert climbed(path, told) == found
    assert len(told.steps_of) == 6


def test_a_sweep_takes_what_a_forecast_has_trained(tmp_path: Path) -> None:
    path, told = write_recipe(tmp_path, training=SHORT), Recorder()
    climbed(path, Recorder())
    found = swept(path, told)
    assert "toy-1" not in told.steps_of  # rank 4
    assert all(20 in trial.values for trial in found.trials)
    nothing = Recorder()
    again = swept(write_recipe(tmp_path, "again", training=SHORT), nothing)  # a task's name changes no adapter
    assert nothing.steps_of == {}
    assert [trial.values for trial in again.trials] == [trial.values for trial in found.trials]


def of(prepared: Prepared) -> Trained:
    (outcome,) = Trainer(prepared.base).train([prepared.job()], Recorder())
    assert isinstance(outcome, Trained)
    return outcome


def test_what_makes_an_adapter_makes_its_name(tmp_path: Path) -> None:
    prepared = prepare(load_recipe(write_recipe(tmp_path, training=SHORT)), Registry(tmp_path / "r"), Recorder())
    runs, job = TrainedRuns(), prepared.job()
    assert runs.get(job) is None
    kept = runs.put(job, of(prepared))
    assert (kept.folder / "adapter_model.safetensors").is_file()
    assert runs.get(job) == kept
    assert runs.put(job, of(prepared)).folder == kept.folder  # as if another process had been as quick
    assert len([*kept.folder.parent.iterdir()]) == 1
    renamed = replace(job, recipe=job.recipe.model_copy(update={"task": "other"}))
    assert runs.get(renamed) == kept
    for other in (
        replace(job, train=job.train[::-1]),
        replace(job, train=job.train[1:]),
        replace(job, train=[replace(job.train[0], weight=2.0), *job.train[1:]]),
        replace(job, validation=job.validation[1:]),
        replace(job, recipe=job.recipe.model_copy(update={"max_length": 99})),
        replace(job, init=tmp_path / "some"),
    ):
        assert runs.get(other) is None
    # Torn by a power cut: gone, and made again.
    (kept.folder / "result.json").write_text('{"best"')
    assert runs.get(job) is None
    runs.put(job, of(prepared))
    assert runs.get(job) is not None


def test_those_used_longest_ago_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(load_recipe(write_recipe(tmp_path, training=SHORT)), Registry(tmp_path / "r"), Recorder())
    runs, outcome = TrainedRuns(), of(prepared)
    jobs = [prepared.job(prepared.splits.train[: 20 + count]) for count in range(3)]
    kept = [runs.put(job, outcome) for job in jobs]
    for age, run in enumerate(kept):
        os.utime(run.folder, (age + 1, age + 1))
    left, now = (kept[0].folder.parent / f".tmp-{name}" for name in ("left", "now"))
    for folder in (left, now):
        folder.mkdir()
    os.utime(left, (1, 1))
    runs.make_room()
    assert (left.exists(), now.exists()) == (False, True)  # a killed process's, and another's at work
    assert all(runs.get(job) for job in jobs)
    for age, run in enumerate(kept):
        os.utime(run.folder, (age + 1, age + 1))
    size = sum(file.stat().st_size for file in kept[0].folder.iterdir())
    monkeypatch.setattr(trained, "_MOST_BYTES", 2 * size + 10)
    runs.make_room([kept[0].folder])
    assert [runs.get(job) is not None for job in jobs] == [True, False, True]
