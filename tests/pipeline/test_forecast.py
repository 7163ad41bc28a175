"""What more data would bring to a recipe: by adapters and by heads, measured, kept, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.errors import DataError, TrainingError, UsageError
from adapterhub.pipeline.forecast import Plan, TaskForecast, choose_by, forecast, trained_rows
from adapterhub.pipeline.forecast_plot import draw
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from tests.pipeline.toys import write_recipe, write_rows
from tests.tiny import make_tiny_base
from tests.training.jobs import Recorder, toy_rows

SHORT = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
SMALL = (8, 20, 40)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def run(path: Path, *, progress: Recorder | None = None, overrides: tuple[str, ...] = (), **plan: Any) -> TaskForecast:
    registry = Registry(path.parent / "registry")
    return forecast(path, overrides, Plan(**plan), registry, progress or Recorder())


def heads_of(path: Path, **plan: Any) -> TaskForecast:
    base = path.parent / "encoder"
    if not base.exists():
        make_tiny_base(base, "bert")
    return run(path, by="heads", base=str(base), **plan)


def test_adapters_climb_and_what_is_trained_is_kept(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, training=SHORT)
    progress = Recorder()
    found = run(path, progress=progress, sizes=SMALL, seeds=2, target=0.9)
    assert (found.by, found.measured_on, found.measured, found.seeds) == ("adapters", "test", 30, 2)
    assert found.base == str(tmp_path / "base")
    assert found.forecast.ladder.wrong.shape == (3, 2, 30)
    assert found.forecast.ladder.errors[-1] < 0.5
    assert len(progress.steps_of) == 6
    assert {each.steps for each in progress.steps_of["toy-8-1"]} == {2}
    assert found.need is not None
    assert not (tmp_path / "registry").exists()
    assert not list(found.folder.glob("adapter-*"))

    again = Recorder()
    same = run(path, progress=again, sizes=SMALL, seeds=2)
    assert again.steps == []
    assert (same.forecast.ladder.wrong == found.forecast.ladder.wrong).all()
    wider = Recorder()
    assert run(path, progress=wider, sizes=SMALL, seeds=3).forecast.ladder.wrong.shape == (3, 3, 30)
    assert set(wider.steps_of) == {"toy-8-2", "toy-20-2", "toy-40-2"}
    other = Recorder()
    run(path, progress=other, overrides=("lora.rank=2",), sizes=SMALL, seeds=2)
    assert len(other.steps_of) == 6


def test_an_adapter_is_measured_as_it_would_serve(tmp_path: Path) -> None:
    from adapterhub.pipeline.prepare import prepare
    from adapterhub.pipeline.rungs import rungs_of
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.training.train import Trainer

    path = write_recipe(tmp_path, training=SHORT)
    found = run(path, sizes=SMALL, seeds=2)
    prepared = prepare(load_recipe(path), Registry(tmp_path / "registry"), Recorder())
    rung = rungs_of(prepared.splits.train, SMALL, (0, 1))[3]
    trainer = Trainer(prepared.base)
    recipe = prepared.recipe.model_copy(update={"training": prepared.recipe.training.model_copy(update={"seed": 1})})
    job = type(prepared)(recipe, *list(vars(prepared).values())[1:]).job([prepared.splits.train[r] for r in rung.rows])
    (trained,) = trainer.train([job], Recorder())
    trainer.close()
    folder = tmp_path / "adapter"
    folder.mkdir()
    trained.write(folder)  # type: ignore[union-attr]
    with AdapterHub(base=prepared.base, registry=tmp_path / "registry") as hub:
        answers = hub.predict_folder(folder, [each.text for each in prepared.splits.test])
    wrong = [answer.label != each.label for answer, each in zip(answers, prepared.splits.test, strict=True)]
    assert found.forecast.ladder.wrong[1, 1].tolist() == [float(each) for each in wrong]


def test_an_interrupted_climb_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(tmp_path, training=SHORT)

    class Stopping(Recorder):
        def begin(self, task: str, steps: int) -> None:
            if task.startswith("toy-40"):
                raise KeyboardInterrupt
            super().begin(task, steps)

    with pytest.raises(KeyboardInterrupt):
        run(path, progress=Stopping(), sizes=SMALL, seeds=4)
    rest = Recorder()
    found = run(path, progress=rest, sizes=SMALL, seeds=4)
    assert set(rest.steps_of) == {f"toy-40-{seed}" for seed in range(4)}
    assert found.forecast.ladder.wrong.shape == (3, 4, 30)


def test_heads_climb(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    seen: list[tuple[str, int, int]] = []
    make_tiny_base(tmp_path / "encoder", "bert")
    plan = Plan(by="heads", base=str(tmp_path / "encoder"), target=0.95)
    registry = Registry(tmp_path / "registry")
    found = forecast(path, (), plan, registry, Recorder(), lambda *told: seen.append(told))
    assert found.forecast.ladder.sizes == (10, 20, 40, 80)
    assert found.forecast.ladder.wrong.shape == (4, 5, 30)
    # All rows are the same rows whatever the seed.
    assert (found.forecast.ladder.wrong[-1] == found.forecast.ladder.wrong[-1, 0]).all()
    assert seen[-1] == ("heads", 16, 16)
    assert ("rows", 110, 110) in seen
    assert (found.by, found.base) == ("heads", str(tmp_path / "encoder"))
    told = Recorder()
    same = run(path, progress=told, by="heads", base=str(tmp_path / "encoder"))
    assert same.forecast.ladder.wrong.tolist() == found.forecast.ladder.wrong.tolist()
    assert not any("heads" in each for each in told.told)
    record = json.loads(json.dumps(found.to_record()))
    assert {"ladder", "fit", "backtest", "forecast", "need", "classes", "coverage"} <= record.keys()
    assert {each["label"] for each in record["classes"]} == {"blue", "red"}
    assert [point["n"] for point in record["classes"][0]["points"]] == [80, 160, 320]
    wrong = found.forecast.ladder.wrong[-1].mean(axis=0)
    assert sum(each["points"][0]["error"] * each["measured"] for each in record["classes"]) == pytest.approx(
        wrong.sum()
    )
    assert {each["train"] for each in record["coverage"]["labels"]} == {40}
    # A shorter ladder does not make the rows fewer that each label has.
    part = run(path, by="heads", base=str(tmp_path / "encoder"), sizes=(10, 20, 30))
    assert part.coverage is not None
    assert {each.train for each in part.coverage.labels} == {each.train for each in part.classes} == {40}
    draw(found, tmp_path / "forecast.png")
    assert (tmp_path / "forecast.png").read_bytes()[:4] == b"\x89PNG"


def test_changed_rows_are_other_rows(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    before = heads_of(path)
    write_rows(tmp_path / "test.jsonl", [dict(row.fields) for row in toy_rows(24, 9)])
    after = heads_of(path)
    assert after.folder != before.folder
    assert after.measured == 24


def test_without_test_rows_validation_measures(tmp_path: Path) -> None:
    found = heads_of(write_recipe(tmp_path, data={"train": "train.jsonl", "validation": "validation.jsonl"}))
    assert (found.measured_on, found.measured) == ("validation", 20)


def test_other_kinds_are_climbed_by_adapters(tmp_path: Path) -> None:
    rows = [{"text": row.text, "labels": [row.label]} for row in toy_rows(40)]
    path = write_recipe(tmp_path, kind="multilabel", training=SHORT)
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"{split}.jsonl", rows[: 40 if split == "train" else 12])
    found = run(path, sizes=(10, 20, 40), seeds=2)
    assert (found.by, found.classes, found.coverage) == ("adapters", (), None)
    assert set(np.unique(found.forecast.ladder.wrong)) <= {0.0, 1.0}
    with pytest.raises(UsageError, match="kind is 'multilabel'"):
        heads_of(path)


def test_adapters_are_trained_where_that_is_quick(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, training={**SHORT, "epochs": 10}))
    assert trained_rows(recipe, (10, 20), 3) == 900
    assert choose_by(recipe, (10, 20, 600), Plan()) == "adapters"
    assert choose_by(recipe, (10, 20, 700), Plan()) == "heads"
    assert choose_by(recipe, (10, 20, 700), Plan(by="adapters")) == "adapters"
    assert choose_by(recipe, (10, 20, 30), Plan(by="heads")) == "heads"
    steps = load_recipe(write_recipe(tmp_path, training={"steps": 100, "batch_size": 8}))
    assert trained_rows(steps, (10, 20), 3) == 4800


def test_what_cannot_be_forecast_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, training=SHORT)
    with pytest.raises(UsageError, match="--by is 'guess'"):
        Plan(by="guess")
    with pytest.raises(UsageError, match="--sizes 10,20"):
        run(path, by="heads", sizes=(10, 20))
    with pytest.raises(UsageError, match="kind is 'embedding'"):
        run(write_recipe(tmp_path, "pairs", kind="embedding"))
    with pytest.raises(DataError, match="too few to halve"):
        run(path, by="heads", overrides=(f"data.train={write_rows(tmp_path / 'few.jsonl', few())}",))
    with pytest.raises((TrainingError, UsageError, DataError), match="nothing_like_it"):
        run(path, overrides=("lora.targets=[nothing_like_it]",), sizes=SMALL, seeds=2)


def few() -> list[dict[str, Any]]:
    return [dict(row.fields) for row in toy_rows(20)]
