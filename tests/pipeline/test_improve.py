"""The way back: feedback becomes rows, a version is trained on them, and promoted only if it is right more often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.main import run
from adapterhub.data.feedback import Feedback, FeedbackWriter
from adapterhub.errors import ConfigError, DataError
from adapterhub.labeling.corrections import read_corrections
from adapterhub.pipeline.build import build
from adapterhub.pipeline.feedback import input_id, lessons, with_lessons, without
from adapterhub.pipeline.improve import improve
from adapterhub.pipeline.labelled import make_labels
from adapterhub.pipeline.splits import read_splits
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from tests.pipeline.test_labelled import raw_recipe
from tests.pipeline.toys import write_recipe, write_rows
from tests.training.jobs import Recorder, toy_rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def told(text: str, label: str, *, place: int = 0, task: str | None = "toy", **changes: Any) -> Feedback:
    record: dict[str, Any] = {
        "id": f"clsf-{text}-{place}",
        "index": 0,
        "at": "2026-01-31T12:00:00Z",
        "task": task,
        "model": "toy@prod",
        "digest": "sha256:0",
        "kind": "classification",
        "input": {"fields": {"text": text}},
        "predicted": {"label": "blue"},
        "right": {"label": label},
    }
    return Feedback(**{**record, **changes})


def drift(count: int, start: int = 0) -> list[Feedback]:
    """Texts that training never saw, of letters it never saw, all red."""
    return [told("z" * (3 + place % 5) + f"-{place}", "red") for place in range(start, start + count)]


def test_the_last_word_counts_and_held_rows_stay_held() -> None:
    few, many = drift(20), drift(60)
    first = lessons([*few, told("again", "blue"), told("again", "red")], "toy", "classification", None)
    later = lessons(many, "toy", "classification", None)
    held = {row.text for row in later.held}
    assert {row.text for row in first.held} - {"again"} == {row.text for row in first.held if row.text in held}
    assert 5 <= len(later.held) <= 25
    assert len(later.held) + len(later.learnt) == 60
    assert [row.label for row in [*first.held, *first.learnt] if row.text == "again"] == ["red"]
    assert not {row.text for row in later.held} & {row.text for row in later.learnt}


def test_other_tasks_bad_labels_and_continued_texts_are_no_lessons() -> None:
    lines = [
        told("a", "red", task="other"),
        told("b", "mauve"),
        told("c", "red", input={"text": "as it stood"}),
        told("d", "red"),
    ]
    found = lessons(lines, "toy", "classification", ("blue", "red"), share=0.0)
    assert [row.text for row in found.learnt] == ["d"]
    assert len(found.skipped) == 2
    assert "unknown label 'mauve'" in found.skipped[0]


def test_lessons_replace_rows_that_ask_the_same() -> None:
    train = toy_rows(6, 0)
    wrong = lessons([told(train[0].text, "blue"), told("new", "red")], "toy", "classification", None, share=0.0).learnt
    merged = with_lessons(train, wrong, "classification")
    assert [row.text for row in merged] == [*(row.text for row in train), "new"]
    assert merged[0].label == "blue"
    assert merged[0].source == "feedback"
    kept = without(train, wrong, "classification")
    assert input_id(train[0], "classification") not in {input_id(row, "classification") for row in kept}


def test_three_rounds_on_a_task_that_drifts(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    path = write_recipe(tmp_path)
    first = build(load_recipe(path), registry, Recorder())
    registry.alias("toy", "prod", first.published.ref)
    promoted = []
    for round_ in range(1, 4):
        found = improve(load_recipe(path), drift(16 * round_), registry, Recorder())
        promoted.append(found.promoted)
        assert found.comparison is not None
        assert found.promoted == (found.comparison.mcnemar.gained > found.comparison.mcnemar.lost)
        card = registry.resolve(found.new.published.ref).card()
        assert found.current is not None
        assert found.current.digest in card.parents
    assert promoted[0]  # every text that drifted was wrong before
    now = registry.resolve("toy@prod")
    assert now.version > 1
    assert "improve: right on" in registry.history("toy")[-1].why


def test_feedback_on_rows_that_are_measured_on_is_not_learnt_from(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    path = write_recipe(tmp_path, training={"steps": 2, "batch_size": 16})
    splits = read_splits(load_recipe(path))
    seen = [told(str(row.text), "red") for row in (splits.test[0], splits.validation[0])]
    found = improve(load_recipe(path), [*seen, told("zzz", "red")], registry, Recorder(), share=0.0)
    assert [row.text for row in found.lessons.learnt] == ["zzz"]
    assert "2 rows ask what validation or test rows ask" in found.lessons.skipped[-1]
    assert registry.resolve("toy").card().data["train"]["rows"] == len(splits.train) + 1


def test_what_is_no_better_is_not_promoted(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    path = write_recipe(tmp_path)
    first = build(load_recipe(path), registry, Recorder())
    registry.alias("toy", "prod", first.published.ref)
    # Feedback of another task teaches nothing, so neither is right more often.
    found = improve(load_recipe(path), [told("z", "red", task="other")], registry, Recorder())
    assert not found.promoted
    assert registry.resolve("toy@prod").version == 1
    assert "not better" in found.why or "changed nothing" in found.why


def test_the_first_version_is_promoted_and_nothing_to_measure_on_is_told(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    path = write_recipe(tmp_path, data={"train": "train.jsonl", "validation": "validation.jsonl"})
    found = improve(load_recipe(path), drift(4), registry, Recorder(), fresh=True)
    assert (found.promoted, found.current) == (True, None)
    assert registry.resolve("toy@prod").ref == found.new.published.ref
    with pytest.raises(DataError, match="neither test rows nor held-out feedback"):
        improve(load_recipe(path), [], registry, Recorder())
    vectors = write_recipe(tmp_path, "vectors", kind="embedding", training={"epochs": 1})
    with pytest.raises(ConfigError, match="kind is 'embedding'"):
        improve(load_recipe(vectors), [], registry, Recorder())


def test_feedback_becomes_corrections_that_a_recipe_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = raw_recipe(tmp_path, corrections="corrections.jsonl")
    text = read_splits(load_recipe(raw_recipe(tmp_path))).train[0].text
    written = told("g", "x", kind="generation", right={"completion": "x"})
    continued = told("c", "x", input={"text": "as it stood"})
    for each in (told(text, "red"), told("other", "red", task="no"), written, continued):
        FeedbackWriter(tmp_path / "feedback.jsonl").add(each)

    def call() -> dict[str, Any]:
        arguments = ["label", "feedback", str(tmp_path / "feedback.jsonl"), "--task", "toy"]
        with pytest.raises(SystemExit) as ended:
            run([*arguments, "--out", str(tmp_path / "corrections.jsonl"), "--json"])
        assert not ended.value.code
        record: dict[str, Any] = json.loads(capsys.readouterr().out)
        return record

    said = call()
    assert (said["added"], said["known"], len(said["skipped"])) == (1, 0, 2)
    assert (call()["added"], len(read_corrections(tmp_path / "corrections.jsonl"))) == (0, 1)
    path = raw_recipe(tmp_path, corrections="corrections.jsonl")
    by_text = {row.text: row for row in make_labels(load_recipe(path)).examples}
    assert (by_text[text].label, by_text[text].source) == ("red", "gold")


def test_improve_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path)
    writer = FeedbackWriter(tmp_path / "feedback.jsonl")
    for each in drift(8):
        writer.add(each)
    write_rows(tmp_path / "test.jsonl", [dict(row.fields) for row in toy_rows(10, 2)])
    quick = ("--json", "--set", "training.steps=2", "--held", "0.5")
    with pytest.raises(SystemExit) as ended:
        run(["improve", str(path), "--feedback", str(writer.path), "--registry", str(tmp_path / "r"), *quick])
    assert not ended.value.code
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["promoted"]
    assert record["feedback"]["learnt"] + record["feedback"]["held"] == 8
    assert "toy@1 is toy@prod now: there was no version before" in printed.err
