"""A recipe's calibration, from its keys to the version that answers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.base.source import open_base
from adapterhub.data.task import Calibration, TaskSpec
from adapterhub.errors import DataError, Overloaded
from adapterhub.pipeline.adopt import Request, adopt
from adapterhub.pipeline.build import BuildResult, build
from adapterhub.pipeline.calibrate import Calibrated
from adapterhub.pipeline.temperature import confidences, fit_temperature
from adapterhub.pipeline.threshold import separating
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.runtime.target import Prediction
from tests.pipeline.toys import write_recipe, write_rows
from tests.training.jobs import Recorder, toy_rows


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def noisy(count: int, seed: int, share: int = 6) -> list[dict[str, Any]]:
    """Return toy rows of which one in `share` has the other label, so that nothing answers all of them rightly."""
    other = {"red": "blue", "blue": "red"}
    rows = [dict(row.fields) for row in toy_rows(count, seed)]
    return [{**row, "label": other[row["label"]]} if n % share == 0 else row for n, row in enumerate(rows)]


OUTSIDE = {"validation": "oos_validation.jsonl", "test": "oos_test.jsonl"}


def noisy_recipe(folder: Path, outside: dict[str, str] | None = None, **changes: Any) -> Path:
    splits = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    path = write_recipe(folder, data={**splits, **({"out_of_scope": outside} if outside else {})}, **changes)
    for name, count, seed in (("train", 80, 0), ("validation", 60, 1), ("test", 40, 2)):
        write_rows(folder / f"{name}.jsonl", noisy(count, seed))
    for number, name in enumerate(OUTSIDE.values()):
        rows = [{"text": f"{number} {'abc123!?'[n % 8] * (n + 3)}", "label": "oos"} for n in range(24)]
        write_rows(folder / name, rows)
    return path


def run(path: Path, *overrides: str, progress: Any = None) -> BuildResult:
    return build(load_recipe(path, overrides), Registry(path.parent / "registry"), progress or Recorder())


def ask(folder: Path, task: str, file: str) -> list[Prediction]:
    texts = [json.loads(line)["text"] for line in (folder / file).read_text().splitlines()]
    with AdapterHub(open_base(str(folder / "base")), Registry(folder / "registry")) as hub:
        return hub.predict(task, texts)


def test_by_default_a_classifier_gets_the_temperature_that_validation_asks_for(tmp_path: Path) -> None:
    path, progress = noisy_recipe(tmp_path), Recorder()
    result = run(path, progress=progress)
    plain = run(path, "task=plain", "calibration.temperature=none")
    spec, before = result.published.spec(), plain.published.spec()
    assert before.calibration is None
    assert spec.calibration is not None
    assert spec.calibration.reject_below is None
    rows = noisy(60, 1)
    logits = np.array([answer.logits for answer in ask(tmp_path, "plain", "validation.jsonl")])
    targets = np.array([[row["label"] == label for label in spec.labels] for row in rows], float)
    expected = fit_temperature(logits, targets, np.ones(60), "classification")
    assert spec.calibration.temperature == expected.temperature != 1.0
    # All else is the same, and so are the labels.
    weights = [each.published.path / "adapter_model.safetensors" for each in (result, plain)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert result.published.digest != plain.published.digest
    assert result.metrics["accuracy"] == plain.metrics["accuracy"]
    assert set(result.metrics) == {"accuracy", "macro_f1", "ece"}
    assert result.metrics["ece"] != plain.metrics["ece"]
    card = result.published.card()
    assert card.calibration["temperature"] == expected.temperature
    assert "fitted on 60 validation rows" in card.calibration["temperature_reason"]
    assert plain.published.card().calibration["temperature_reason"] == "not asked for"
    assert any(line.startswith(f"toy: temperature {expected.temperature}, fitted on 60") for line in progress.told)
    assert result.training.spec == spec
    again = run(path)
    assert (again.published.digest, again.published.created) == (result.published.digest, False)


def test_rows_out_of_scope_choose_a_threshold_and_measure_it(tmp_path: Path) -> None:
    path = noisy_recipe(tmp_path, OUTSIDE)
    result = run(path)
    calibration = result.published.spec().calibration
    assert calibration is not None
    inside, outside = ask(tmp_path, "toy", "validation.jsonl"), ask(tmp_path, "toy", "oos_validation.jsonl")
    tops = [
        confidences(np.array([answer.logits for answer in answers]), calibration.temperature)
        for answers in (inside, outside)
    ]
    expected = separating(*tops)
    assert calibration.reject_below == expected.reject_below
    card = result.published.card()
    assert card.calibration["reject_below_reason"] == expected.reason
    assert card.data["out_of_scope.test"]["rows"] == 24
    assert card.data["out_of_scope.test"]["name"] == "oos_test.jsonl"
    rejected = [answer.label is None for answer in ask(tmp_path, "toy", "oos_test.jsonl")]
    right = [
        answer.label == row["label"]
        for answer, row in zip(ask(tmp_path, "toy", "test.jsonl"), noisy(40, 2), strict=True)
    ]
    assert result.metrics["oos_recall"].value == pytest.approx(sum(rejected) / 24)
    assert result.metrics["in_scope_accuracy"].value == pytest.approx(sum(right) / 40)
    assert result.metrics["in_scope_accuracy"].value <= result.metrics["accuracy"].value
    assert 0 <= result.metrics["oos_auroc"].value <= 1
    assert str(tmp_path) not in card.to_json()
    text = (result.published.path / "README.md").read_text()
    assert "## Calibration" in text
    assert "| Out-of-scope recall |" in text
    assert str(tmp_path) not in text


def test_without_rows_out_of_scope_a_threshold_keeps_what_is_right(tmp_path: Path) -> None:
    result = run(noisy_recipe(tmp_path), "calibration={temperature: 2.5, reject_below: auto}")
    calibration = result.published.spec().calibration
    assert calibration is not None
    assert calibration.temperature == 2.5
    answers = ask(tmp_path, "toy", "validation.jsonl")
    labels = result.published.spec().labels
    rows = [(labels[int(np.argmax(a.logits or ()))], a.label) for a in answers]
    right = [given for (likeliest, given), row in zip(rows, noisy(60, 1), strict=True) if likeliest == row["label"]]
    assert calibration.reject_below is not None
    assert 0 < sum(given is None for given in right) <= len(right) / 20
    reasons = result.published.card().calibration
    assert reasons["temperature_reason"] == "set by the recipe"
    assert f"of {len(right)} rightly answered validation rows" in reasons["reject_below_reason"]


def test_what_the_recipe_sets_needs_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing needs to be asked")

    path = noisy_recipe(tmp_path, OUTSIDE)
    with monkeypatch.context() as broken:
        broken.setattr("adapterhub.pipeline.calibrate.see", never)
        result = run(path, "calibration={temperature: 2, reject_below: 0.6}")
        assert result.published.spec().calibration == Calibration(2.0, 0.6)
        plain = run(path, "calibration={temperature: 1, reject_below: none}")
    assert plain.published.spec().calibration is None
    assert json.loads((plain.published.path / "task.json").read_text())["format"] == 1
    assert plain.metrics["oos_recall"].value == 0.0


def test_where_nothing_can_be_fitted_the_rules_stay_as_they_are_and_the_card_says_why(tmp_path: Path) -> None:
    result = run(write_recipe(tmp_path))  # all of validation is answered rightly
    spec = result.published.spec()
    assert spec.calibration is None
    assert "calibration" not in (result.published.path / "task.json").read_text()
    assert "all 20 validation rows are answered rightly" in result.published.card().calibration["temperature_reason"]


def test_multilabel_has_a_temperature_and_generation_nothing(tmp_path: Path) -> None:
    rows = [
        {"text": "x" * (n % 2) + "y" * (n // 2 % 2) + "-", "labels": ["red"] * (n % 2) + ["blue"] * (n % 3 == 0)}
        for n in range(64)
    ]
    write_rows(tmp_path / "many.jsonl", rows)
    data = dict.fromkeys(("train", "validation", "test"), "many.jsonl")
    many = run(write_recipe(tmp_path, "many", kind="multilabel", data=data)).published
    calibration = many.spec().calibration
    assert calibration is not None
    assert calibration.temperature != 1
    assert set(many.card().calibration) == {"temperature", "temperature_reason"}
    written = [{"prompt": "ab"[n % 2], "completion": "c"} for n in range(24)]
    write_rows(tmp_path / "asks.jsonl", written)
    training = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3}
    data = {"train": "asks.jsonl", "test": "asks.jsonl"}
    writer = run(write_recipe(tmp_path, "writer", kind="generation", data=data, training=training)).published
    assert writer.spec().calibration is None
    assert writer.card().calibration == {}


def test_a_row_out_of_scope_that_cannot_be_read_is_found_before_training(tmp_path: Path) -> None:
    path = noisy_recipe(tmp_path, OUTSIDE, max_length=40)
    for row, said in (({"text": "x" * 300}, "300 tokens are more than the 40"), ({"text": ""}, "the text is empty")):
        write_rows(tmp_path / "oos_test.jsonl", [{"text": "x"}, row])
        progress = Recorder()
        with pytest.raises(DataError, match=rf"oos_test\.jsonl:2: .*{said}"):
            run(path, progress=progress)
        assert progress.steps == []


def test_an_adapter_that_cannot_be_published_is_kept_with_its_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Overloaded("the disk is full")

    path = noisy_recipe(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Registry, "publish", full)
        with pytest.raises(Overloaded, match="is kept in"):
            run(path)
    (kept,) = (tmp_path / "cache" / "unpublished").iterdir()
    published = adopt(kept, Registry(tmp_path / "there"), Request("toy"))
    calibration = published.spec().calibration
    assert calibration is not None
    assert published.card().calibration["temperature"] == calibration.temperature
    assert published.digest == run(path).published.digest


def test_what_was_found_is_one_line() -> None:
    spec = TaskSpec("classification", "sha256:0", 5)
    record = {"temperature": 1.5, "temperature_reason": "a", "reject_below": None, "reject_below_reason": "b"}
    assert str(Calibrated(spec, record)) == "temperature 1.5, a; reject_below None, b"
    assert str(Calibrated(spec)) == ""
