"""Many settings on few rows, fewer on more: what is run, what is kept, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import AdapterHubError, ConfigError, UsageError
from adapterhub.metrics import rank_correlation
from adapterhub.pipeline.space import Space
from adapterhub.pipeline.sweep import Plan, Ranking, Sweep, _nested, sweep
from adapterhub.registry.store import Registry
from tests.pipeline.toys import write_recipe
from tests.training.jobs import Recorder, toy_rows

SHORT = {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def run(path: Path, grid: list[str], *, progress: Recorder | None = None, **plan: Any) -> Sweep:
    options = {"trials": None, "budgets": (0.25, 1.0), "keep": 0.5, **plan}
    registry = Registry(path.parent / "registry")
    return sweep(path, (), Plan(Space.parse(grid, []), **options), registry, progress or Recorder())


def test_the_best_of_few_rows_run_on_all(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, training=SHORT)
    found = run(path, ["training.learning_rate=1e-6,1e-5,5e-3,1e-2"])
    assert found.rows == (20, 80)
    assert len(found.trials) == 4
    assert all(20 in trial.values for trial in found.trials)
    whole = [trial for trial in found.trials if 80 in trial.values]
    assert len(whole) == 2
    best = {trial.settings["training.learning_rate"] for trial in sorted(found.trials, key=lambda t: -t.values[20])[:2]}
    assert {trial.settings["training.learning_rate"] for trial in whole} == best
    assert found.trials[0].values[80] == max(trial.values[80] for trial in whole)
    assert found.rankings == (Ranking(20, None, 2),)
    assert (found.folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "registry").exists()
    record = json.loads(json.dumps(found.to_record()))
    assert record["best"] == found.trials[0].settings
    assert record["rows"] == [20, 80]


def test_small_and_full_are_compared_where_three_ran_on_both(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, training=SHORT)
    found = run(path, ["training.learning_rate=1e-6,5e-3,1e-2"], keep=0.99, budgets=(0.25, 0.5, 1.0))
    assert [(each.rows, each.compared) for each in found.rankings] == [(20, 3), (40, 3)]
    for each in found.rankings:
        pairs = [(trial.values[each.rows], trial.values[80]) for trial in found.trials]
        assert each.correlation == rank_correlation(*zip(*pairs, strict=True))
    record = found.to_record()
    assert record["rank_correlation"] == record["rankings"][0]["correlation"]
    assert record["rankings"][1]["rows"] == 40


def test_what_has_run_is_not_run_again(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, training=SHORT)
    first = run(path, ["lora.rank=2,4"])
    again = Recorder()
    second = run(path, ["lora.rank=2,4"], progress=again)
    assert again.steps == []
    assert [trial.values for trial in second.trials] == [trial.values for trial in first.trials]
    wider = Recorder()
    run(path, ["lora.rank=2,4,6"], progress=wider, budgets=(0.25,))
    assert len(wider.steps) == 2  # one setting, 20 rows, batches of 16
    file = first.folder / "sweep.jsonl"
    file.write_text(file.read_text()[:-20])  # as if killed while it wrote
    assert run(path, ["lora.rank=2,4"], budgets=(0.25,)).trials


def test_a_setting_that_fails_is_told_and_stops_none(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, training=SHORT)
    found = run(path, ["lora.targets=all-linear,[nothing_like_it]"], budgets=(1.0,))
    assert [trial.error is None for trial in found.trials] == [True, False]
    assert "nothing_like_it" in str(found.trials[1].error)
    with pytest.raises(AdapterHubError, match="no setting could be trained"):
        run(path, ["lora.targets=[nothing_like_it],[nor_it]"], budgets=(1.0,))


def test_wrong_settings_and_plans_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, training=SHORT)
    progress = Recorder()
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        run(path, ["lora.rank=4,0"], progress=progress)
    assert progress.steps == []
    for budgets, said in (((1.0, 0.5), "rising"), ((0.5, 2.0), "more than all"), ((), "rising"), ((0.0,), "rising")):
        with pytest.raises(UsageError, match=said):
            Plan(Space.parse(["lora.rank=2,4"], []), None, budgets)
    with pytest.raises(UsageError, match="between 0 and 1"):
        Plan(Space.parse(["lora.rank=2,4"], []), None, keep=1.0)
    with pytest.raises(UsageError, match="--trials"):
        sweep(path, (), Plan(Space.parse([], ["lora.alpha=1..9"]), None), Registry(tmp_path / "registry"), Recorder())


def test_the_first_rows_are_a_fair_sample_of_all() -> None:
    rows = [row for row in toy_rows(80) if row.label == "red"][:10] + [r for r in toy_rows(80) if r.label == "blue"]
    order = _nested(rows, seed=0)
    assert sorted(each.id for each in order) == sorted(each.id for each in rows)
    assert [each.id for each in order] == [each.id for each in _nested(rows, seed=0)]
    assert [each.id for each in order] != [each.id for each in _nested(rows, seed=1)]
    part = order[: len(order) // 2]
    assert abs(sum(each.label == "red" for each in part) - 5) <= 1
