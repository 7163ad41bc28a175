from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.pipeline.check import Report, check_recipe
from tests.tiny import make_tiny_base

TRAIN = [
    {"text": f"{word} {n}", "label": label} for n in range(8) for word, label in (("hello", "greet"), ("bye", "part"))
]
TEST = [{"text": "hello you", "label": "greet"}, {"text": "bye you", "label": "part"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def check(
    folder: Path,
    train: Iterable[dict[str, Any]] = TRAIN,
    test: Iterable[dict[str, Any]] = TEST,
    *overrides: str,
    kind: str = "classification",
    base: str = "smollm2-135m-instruct",
) -> Report:
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        f"{{task: t, base: {base}, kind: {kind}, data: {{train: train.jsonl, test: test.jsonl}}}}"
    )
    return check_recipe(folder / "recipe.yaml", overrides)


def test_a_fine_recipe_on_a_base_that_is_here(tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "tiny")
    report = check(tmp_path, base="./tiny")
    assert (report.ok, report.problems, report.warnings, report.note) == (True, [], [], "")
    assert report.splits["train"].labels == {"greet": 8, "part": 8}
    assert report.splits["test"].rows == 2
    assert report.estimate is not None
    assert report.estimate.steps == 3  # 14 of 16 rows remain once some are held out for validation
    assert json.loads(json.dumps(report.to_record()))["estimate"]["adapter_parameters"] > 0


def test_without_the_base_there_is_a_note(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert report.ok
    assert report.estimate is None
    assert "adapterhub base pull smollm2-135m-instruct" in report.note
    assert check(tmp_path, base="org/name").ok


def test_a_base_that_cannot_be_is_a_problem(tmp_path: Path) -> None:
    assert "no base 'smollm'" in check(tmp_path, base="smollm").problems[0]
    assert "no such folder" in check(tmp_path, base="./none").problems[0]
    (tmp_path / "hollow").mkdir()
    assert "holds no model.safetensors" in check(tmp_path, base="./hollow").problems[0]


def test_every_wrong_file_is_reported(tmp_path: Path) -> None:
    report = check(tmp_path, [{"text": "a"}], [{"label": "x"}], "data.validation=none.jsonl")
    assert [problem.removeprefix(f"{tmp_path}/").split(";")[0] for problem in report.problems] == [
        "train.jsonl:1: the field 'label' is missing",
        "none.jsonl: there is no such file",
        "test.jsonl:1: the field 'text' is missing",
    ]


def test_a_wrong_recipe_is_reported_whole(tmp_path: Path) -> None:
    report = check(tmp_path, TRAIN, TEST, "lora.rank=0", "training.epoch=1")
    assert len(report.problems) == 2
    assert (report.task, report.splits, report.to_record()["ok"]) == (None, {}, False)


def test_labels_that_training_would_refuse_or_never_learn(tmp_path: Path) -> None:
    report = check(tmp_path, TRAIN, [*TEST, {"text": "moo", "label": "cow"}])
    assert report.problems == [f"{tmp_path}/test.jsonl:3: unknown label 'cow'; no row of train.jsonl has it"]
    report = check(tmp_path, TRAIN, TEST, "labels=[greet, part, cow]")
    assert report.problems == []
    assert report.warnings == ["labels: 'cow' is in no training row, so it cannot be learnt"]
    assert "nothing to learn" in check(tmp_path, TRAIN[::2], TEST[:1]).problems[0]


def test_empty_repeated_and_shared_texts_are_warnings(tmp_path: Path) -> None:
    rows = [*TRAIN, {"text": " ", "label": "part"}, TRAIN[0], {**TRAIN[1], "label": "greet"}]
    report = check(tmp_path, rows, [*TEST, TRAIN[2]])
    assert report.ok
    assert report.warnings == [
        f"train.jsonl: 1 row with an empty text, the first at {tmp_path}/train.jsonl:17",
        f"train.jsonl: 2 rows with the text of an earlier one, the first at {tmp_path}/train.jsonl:18",
        f"train.jsonl: 1 text with different answers, the first at {tmp_path}/train.jsonl:2 "
        f"and {tmp_path}/train.jsonl:19",
        f"test and train share 1 text, the first at {tmp_path}/test.jsonl:3 ('hello 1'); test metrics will flatter",
    ]


def test_generation_compares_what_the_base_reads(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    other = [{"role": "system", "content": "s"}, *turns]
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "asked": ["x"], "completion": "1"},
        {"prompt": "a", "asked": ["y"], "completion": "2"},
        {"messages": turns},
        {"messages": other},
    ]
    test = [{"messages": turns[:1], "completion": "other"}]
    report = check(tmp_path, rows, test, "prompt.template='{prompt} {asked}'", kind="generation")
    assert [warning.split(",")[0] for warning in report.warnings] == ["test and train share 1 text"]
    assert check(tmp_path, rows[:2], [], kind="generation").warnings[0].startswith("train.jsonl: 1 row with the text")


def test_a_template_that_asks_for_a_missing_field_is_a_problem(tmp_path: Path) -> None:
    report = check(tmp_path, TRAIN, TEST, "prompt.template='{subject}: {text}'")
    assert report.problems[0] == f"{tmp_path}/train.jsonl:1: the field 'subject' is missing; the task's prompt needs it"


def test_what_does_not_fit_the_base_is_a_problem(tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "tiny")
    for override, said in (
        ("lora.targets=[c_attn]", "'c_attn' is no linear module"),
        ("lora.layers=top-9", "this base has 3 layers"),
        ("max_length=5", "more than max_length 5"),
        ("max_length=9999", "reads 512 tokens"),
    ):
        (problem,) = check(tmp_path, TRAIN, TEST, override, base="./tiny").problems
        assert said in problem
