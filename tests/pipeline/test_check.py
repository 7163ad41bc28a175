from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base.source import open_base
from adapterhub.pipeline.check import Report, check_recipe
from adapterhub.registry.store import Registry
from tests.server.publishing import publish
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
    assert "have the same answer, 'greet'" in check(tmp_path, TRAIN[::2], TEST[:1]).problems[0]


def test_empty_repeated_and_shared_texts_are_warnings(tmp_path: Path) -> None:
    rows = [*TRAIN, {"text": " ", "label": "part"}, TRAIN[0], {**TRAIN[1], "label": "greet"}]
    report = check(tmp_path, rows, [*TEST, TRAIN[2]])
    assert report.ok
    assert report.warnings == [
        f"train.jsonl: 1 row with an empty text, the first at {tmp_path}/train.jsonl:17",
        f"train.jsonl: 2 rows with the text of an earlier one, the first at {tmp_path}/train.jsonl:18",
        f"train.jsonl: 1 text with different answers, the first at {tmp_path}/train.jsonl:2 "
        f"and {tmp_path}/train.jsonl:19",
        f"LEAK: test and train share 1 text, the first at {tmp_path}/test.jsonl:3 ('hello 1'); test metrics will "
        "flatter; `adapterhub data dedup` with --against leaves such rows out",
    ]


def test_rows_out_of_scope_are_counted_and_looked_over(tmp_path: Path) -> None:
    def write(name: str, *rows: dict[str, Any]) -> None:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    keys = ("data.out_of_scope.validation=v.jsonl", "data.out_of_scope.test=o.jsonl")
    write("v", {"text": "what is love", "label": "oos"}, {"text": "42"})
    write("o", {"text": "who are you"}, {"text": "hello 1", "label": "greet"}, {"text": "42"})
    report = check(tmp_path, TRAIN, TEST, *keys)
    assert report.ok
    assert {name: split.rows for name, split in report.splits.items()} == {
        "train": 16,
        "test": 2,
        "out_of_scope.validation": 2,
        "out_of_scope.test": 3,
    }
    assert report.splits["out_of_scope.test"].labels == {}
    assert report.warnings == [
        f"out_of_scope.test and train share 1 text, the first at {tmp_path}/o.jsonl:2 ('hello 1'); "
        "rows out of scope have no label",
        f"out_of_scope.test and out_of_scope.validation share 1 text, the first at {tmp_path}/o.jsonl:3 ('42'); "
        "out_of_scope.test metrics will flatter; `adapterhub data dedup` with --against leaves such rows out",
    ]
    write("v", {"label": "oos"})
    (tmp_path / "o.jsonl").unlink()
    assert [
        problem.removeprefix(f"{tmp_path}/").split(";")[0] for problem in check(tmp_path, TRAIN, TEST, *keys).problems
    ] == [
        "v.jsonl:1: the field 'text' is missing",
        "o.jsonl: there is no such file",
    ]
    make_tiny_base(tmp_path / "tiny")
    write("v", {"text": "a"})
    write("o", {"text": "b" * 99})
    (problem,) = check(tmp_path, TRAIN, TEST, *keys, "max_length=20", base="./tiny").problems
    assert "o.jsonl:1: the row has 99 tokens, more than max_length 20" in problem


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
    assert [warning.split(",")[0] for warning in report.warnings] == ["LEAK: test and train share 1 text"]
    assert check(tmp_path, rows[:2], [], kind="generation").warnings[0].startswith("train.jsonl: 1 row with the text")


PAIRS = [
    {"text": "where is it", "positive": "Track a parcel", "negative": "Track a refund"},
    {"text": "when does it come", "positive": "Track a parcel"},
    {"text": "money back", "positive": "Track a refund"},
    {"text": "give it back", "positive": "Track a refund"},
]
PREFERRED = [{"prompt": f"p{n // 2}", "chosen": f"yes {n}", "rejected": "no"} for n in range(8)]


def test_pairs_are_counted_by_their_texts(tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "tiny")
    report = check(tmp_path, PAIRS, [{"text": "a", "positive": "b"}], kind="embedding", base="./tiny")
    assert (report.problems, report.warnings) == ([], [])
    assert report.splits["train"].texts == {"texts": 4, "positives": 2, "negatives": 1}
    assert report.splits["train"].labels == {}
    assert report.to_record()["splits"]["test"]["texts"] == {"texts": 1, "positives": 1}
    assert report.estimate is not None
    report = check(
        tmp_path, PREFERRED, [{"prompt": "q", "chosen": "a", "rejected": "b"}], kind="preference", base="./tiny"
    )
    assert (report.problems, report.warnings) == ([], [])
    assert report.splits["train"].texts == {"prompts": 4}
    assert report.estimate is not None


def test_equal_and_contradicting_pairs_are_warnings(tmp_path: Path) -> None:
    rows = [*PAIRS, PAIRS[1], {"text": "where is it", "positive": "Track a refund"}]
    report = check(tmp_path, rows, [PAIRS[0]], kind="embedding")
    assert report.warnings == [
        f"train.jsonl: 1 row(s) equal to an earlier one, the first at {tmp_path}/train.jsonl:5",
        "train.jsonl: 1 negative(s) that are a positive of the same text in another row, the first at "
        f"{tmp_path}/train.jsonl:6 and {tmp_path}/train.jsonl:1",
        f"LEAK: test and train share 1 text, the first at {tmp_path}/test.jsonl:1 ('where is it'); test metrics will "
        "flatter; `adapterhub data dedup` with --against leaves such rows out",
    ]
    rows = [*PREFERRED, PREFERRED[2], {"prompt": "p0", "chosen": "no", "rejected": "yes 1"}]
    report = check(tmp_path, rows, [{"prompt": "q", "chosen": "a", "rejected": "b"}], kind="preference")
    assert report.warnings == [
        f"train.jsonl: 1 row(s) equal to an earlier one, the first at {tmp_path}/train.jsonl:9",
        "train.jsonl: 1 preference(s) that another row reverses, the first at "
        f"{tmp_path}/train.jsonl:2 and {tmp_path}/train.jsonl:10",
    ]


def test_pairs_and_weights_that_training_would_refuse(tmp_path: Path) -> None:
    report = check(tmp_path, [{"text": f"t{n}", "positive": "x"} for n in range(4)], PAIRS[:1], kind="embedding")
    assert "all training rows have the same positive, 'x'" in report.problems[0]
    report = check(tmp_path, TRAIN, TEST, "training.class_weights={greet: 2, cow: 1}")
    assert "training.class_weights names 'cow', which is no label; the labels are greet, part" in report.problems[0]


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


def test_what_training_would_refuse_is_a_problem_here_too(tmp_path: Path) -> None:
    same = [{"text": f"t{n}", "labels": ["a"]} for n in range(20)]
    (problem,) = check(tmp_path, same, same, kind="multilabel").problems
    assert "all 18 training rows have the same answer, 'a'" in problem
    (problem,) = check(tmp_path, TRAIN[:2], TEST).problems
    assert "too few to hold any out" in problem
    # Rows of one text are one input, so there is nothing to hold out.
    torn = [{"text": "t", "label": label, "n": n} for n, label in enumerate("ab" * 10)]
    assert "1 different input" in check(tmp_path, torn, torn).problems[0]


def test_columns_of_other_kinds_do_not_matter(tmp_path: Path) -> None:
    extra = {"label": ["a"], "labels": 5, "messages": 5, "completion": 7}
    rows = [{**extra, **row} for row in TRAIN]
    make_tiny_base(tmp_path / "tiny")
    report = check(tmp_path, rows, rows[:1], "data.validation=test.jsonl", base="./tiny")
    assert (report.problems, report.splits["train"].labels) == ([], {"greet": 8, "part": 8})
    rows = [{"prompt": f"p{n}", "completion": "c", "label": ["a"], "labels": 5} for n in range(20)]
    report = check(tmp_path, rows, rows[:1], kind="generation")
    assert (report.problems, report.splits["train"].labels) == ([], {})
    rows = [{"text": f"t{n}", "labels": ["x"] * (n % 2), "label": "y"} for n in range(20)]
    report = check(tmp_path, rows, rows[:1], kind="multilabel")
    assert (report.problems, report.splits["train"].labels) == ([], {"x": 10})


def test_a_task_bound_to_another_base_is_a_problem(tmp_path: Path) -> None:
    base = open_base(str(make_tiny_base(tmp_path / "one")))
    make_tiny_base(tmp_path / "tiny", seed=1)
    registry = Registry(tmp_path / "registry")
    publish(registry, base, "t", tmp_path, kind="classification")
    check(tmp_path, base="./tiny")
    (problem,) = check_recipe(tmp_path / "recipe.yaml", (), registry).problems
    assert "task 't' is bound to base" in problem
    assert check_recipe(tmp_path / "recipe.yaml", ["base=./one"], registry).ok
    assert check_recipe(tmp_path / "recipe.yaml", ["task=u"], registry).ok


def test_a_home_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    report = check(tmp_path, TRAIN, TEST, "data.test=~nobody-of-that-name/t.jsonl", "base=~nobody-of-that-name/base")
    assert len(report.problems) == 2
    assert all("leads nowhere" in problem for problem in report.problems)


def test_texts_that_are_nearly_in_another_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "Where can I see how much of the delivery fee was refunded"
    train = [*TRAIN, {"text": long, "label": "greet"}, {"text": "", "label": "greet"}]
    test = [
        {"text": "Hello, 3!", "label": "greet"},
        {"text": long + "?s", "label": "greet"},
        {"text": " ", "label": "part"},
    ]
    report = check(tmp_path, train, test)
    assert report.leaks
    warnings = "\n".join(report.warnings)
    assert "LEAK: 1 text of test and train are equal but for case and punctuation" in warnings
    assert "test.jsonl:1 ('Hello, 3!' and 'hello 3')" in warnings
    assert "1 text of test and train are nearly the same" in warnings
    assert "adapterhub data dedup" in warnings
    fine = check(tmp_path)
    assert not fine.leaks
    assert not any("nearly" in each or "but for" in each for each in fine.warnings)
    monkeypatch.setattr("adapterhub.curation.across.MOST_TEXTS", 3)
    warnings = "\n".join(check(tmp_path, train, test).warnings)
    assert "too many to look here for those that are nearly the same" in warnings
    assert "are nearly the same, the first" not in warnings
