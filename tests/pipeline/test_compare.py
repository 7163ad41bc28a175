"""Two versions of a tiny task beside each other: compared, gated, diffed, probed, and moved to another base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.base.source import open_base
from adapterhub.errors import BaseNotFound, Conflict, DataError, FileMissing, UsageError
from adapterhub.pipeline import probes
from adapterhub.pipeline.adopt import Request, adopt
from adapterhub.pipeline.bases import Bases
from adapterhub.pipeline.build import build
from adapterhub.pipeline.compare import Gate, compare, promote
from adapterhub.pipeline.diff import diff
from adapterhub.pipeline.probes import choose_probes, read_probes, replay_all
from adapterhub.pipeline.rebase import Rebased, plan, rebase
from adapterhub.recipe import load_recipe
from adapterhub.registry.archive import export
from adapterhub.registry.bundle import PROBES_FILE
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version
from adapterhub.runtime.hub import AdapterHub
from tests.pipeline.toys import write_recipe, write_rows
from tests.tiny import make_tiny_base
from tests.training.jobs import Recorder, toy_rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry with toy@1, which hardly learnt, toy@2, which did, with some rows more, and a writing task."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_CACHE", str(folder / "cache"))
        registry = Registry(folder / "registry")
        recipe = write_recipe(folder)
        build(load_recipe(recipe, ["training.epochs=0.2"]), registry, Recorder())
        rows = [dict(row.fields) for row in toy_rows(80, 0)]
        new = {"text": "a new red one", "label": "red"}
        write_rows(folder / "train.jsonl", [{**rows[0], "label": "blue"}, *rows[1:78], new])
        build(load_recipe(recipe), registry, Recorder())
        write_rows(folder / "train.jsonl", rows)
        make_tiny_base(folder / "base-2", seed=3)
        yield folder


@pytest.fixture(autouse=True)
def cache(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(world / "cache"))


@pytest.fixture
def bases(world: Path) -> Bases:
    """Both bases are folders, which no card may name."""
    return Bases([str(world / "base"), str(world / "base-2")])


@pytest.fixture
def registry(world: Path, tmp_path: Path) -> Registry:
    return Registry(Path(shutil.copytree(world / "registry", tmp_path / "registry")))


# Comparing


def test_both_answer_the_same_rows(world: Path, registry: Registry, bases: Bases) -> None:
    found = compare("toy@1", "toy@2", world / "test.jsonl", registry, bases=bases)
    rows = toy_rows(30, 2)
    with AdapterHub(open_base(str(world / "base")), registry) as hub:
        answers = [[a.label for a in hub.predict(ref, [row.text for row in rows])] for ref in ("toy@1", "toy@2")]
    right = [[a == row.label for a, row in zip(each, rows, strict=True)] for each in answers]
    assert found.count == 30
    assert [each["accuracy"].value for each in found.metrics] == [sum(each) / 30 for each in right]
    assert found.differences["accuracy"].value == pytest.approx((sum(right[1]) - sum(right[0])) / 30)
    assert found.mcnemar.gained == sum(b and not a for a, b in zip(*right, strict=True))
    differing = [n for n, (a, b) in enumerate(zip(*answers, strict=True)) if a != b]
    assert [row.asked for row in found.rows] == [rows[n].text for n in differing]
    assert {row.right for row in found.rows} <= {"first", "second"}
    assert found.rows[0].where.endswith(f"test.jsonl:{differing[0] + 1}")
    record = found.to_record()
    assert json.loads(json.dumps(record)) == record
    assert (record["first"]["ref"], record["second"]["ref"], record["rows"]) == ("toy@1", "toy@2", 30)
    assert all(seconds > 0 for seconds in found.seconds)


def test_a_version_beside_itself_differs_nowhere(world: Path, registry: Registry, bases: Bases) -> None:
    found = compare("toy@2", "toy@2", world / "test.jsonl", registry, bases=bases)
    assert (list(found.rows), found.mcnemar.p) == ([], 1.0)
    assert all(each.value == each.low == each.high == 0 for each in found.differences.values())


def test_what_cannot_be_compared_is_said(world: Path, registry: Registry, bases: Bases, tmp_path: Path) -> None:
    writing = write_rows(tmp_path / "w.jsonl", [{"prompt": f"say {n}", "completion": "ok"} for n in range(20)])
    recipe = write_recipe(
        tmp_path,
        "writer",
        kind="generation",
        base=str(world / "base"),
        training={"steps": 1},
        data={"train": str(writing)},
        prompt={"style": "plain"},
    )
    build(load_recipe(recipe), registry, Recorder())
    with pytest.raises(UsageError, match="compare two of one kind"):
        compare("toy@2", "writer", world / "test.jsonl", registry, bases=bases)
    with pytest.raises(FileMissing):
        compare("toy@1", "toy@2", tmp_path / "none.jsonl", registry, bases=bases)
    with pytest.raises(DataError):
        compare("toy@1", "toy@2", writing, registry, bases=bases)


# Promoting


def test_without_a_gate_promoting_is_moving_the_alias(registry: Registry) -> None:
    version, comparison = promote("toy@1", "prod", registry, why="first")
    assert (version.ref, comparison, registry.resolve("toy").version) == ("toy@1", None, 1)
    assert registry.history("toy")[-1].why == "first"


def test_a_better_version_passes_the_gate_and_a_worse_one_does_not(
    world: Path, registry: Registry, bases: Bases
) -> None:
    gate = Gate("accuracy", world / "test.jsonl", 0.0)
    promote("toy@1", "prod", registry, gate=gate, bases=bases)  # nothing to compare with yet
    version, comparison = promote("toy@2", "prod", registry, gate=gate, bases=bases)
    assert version.version == registry.resolve("toy@prod").version == 2
    assert comparison is not None
    assert comparison.differences["accuracy"].least > 0
    with pytest.raises(Conflict, match=r"toy@1 was not promoted to toy@prod: its accuracy on 30 rows .* wider margin"):
        promote("toy@1", "prod", registry, gate=gate, bases=bases)
    assert registry.resolve("toy@prod").version == 2
    promote("toy@1", "prod", registry, gate=Gate("accuracy", world / "test.jsonl", 1.0), bases=bases, why="roll back")
    assert registry.resolve("toy@prod").version == 1


def test_promoting_what_is_there_asks_nothing(world: Path, registry: Registry, bases: Bases) -> None:
    promote("toy@2", "prod", registry)
    version, comparison = promote(
        "toy@2", "prod", registry, gate=Gate("accuracy", world / "test.jsonl", 0.0), bases=bases
    )
    assert (version.version, comparison) == (2, None)


def test_an_unknown_metric_is_told_with_those_there_are(world: Path, registry: Registry, bases: Bases) -> None:
    promote("toy@1", "prod", registry)
    with pytest.raises(UsageError, match=r"no metric 'f1' to promote by; it may be accuracy, macro_f1"):
        promote("toy@2", "prod", registry, gate=Gate("f1", world / "test.jsonl", 0.0), bases=bases)


def test_an_alias_that_moves_while_the_gate_is_tested_is_left_alone(
    world: Path, registry: Registry, bases: Bases
) -> None:
    promote("toy@1", "prod", registry)

    def meddle(answers: Iterator[object], _: int) -> Iterator[object]:
        registry.alias("toy", "prod", None)
        registry.alias("toy", "prod", "toy@2")
        return answers

    with pytest.raises(Conflict, match="somebody moved it meanwhile"):
        promote("toy@2", "prod", registry, gate=Gate("accuracy", world / "test.jsonl", 0.0), bases=bases, watch=meddle)


# Diffing


def test_a_diff_tells_recipe_rows_weights_and_metrics(registry: Registry) -> None:
    found = diff("toy@1", "toy@2", registry)
    assert found.recipe == {"training.epochs": (0.2, 4.0)}
    assert not found.data["train"].same
    moved = found.data["train"].rows
    assert moved is not None
    assert moved.same + moved.relabelled + moved.removed == 80
    assert moved.same + moved.relabelled + moved.added == 79
    assert moved.added == 1
    assert found.data["test"].same
    assert found.metrics["accuracy"][1] == registry.resolve("toy@2").card().metrics["accuracy"]["value"]
    assert [each.layer for each in found.layers] == sorted((each.layer for each in found.layers), key=int)
    assert all(each.second > each.first >= 0 for each in found.layers)
    assert all(each.apart <= each.first + each.second + 1e-9 for each in found.layers)
    (apart,) = found.head.values()
    assert apart is not None
    assert apart > 0
    record = found.to_record()
    assert json.loads(json.dumps(record)) == record


def test_a_version_does_not_differ_from_itself(registry: Registry) -> None:
    found = diff("toy@2", "toy@2", registry)
    assert (found.recipe, [each.apart for each in found.layers]) == (
        {},
        pytest.approx([0] * len(found.layers), abs=1e-5),
    )
    assert all(each.same for each in found.data.values())


def test_rows_that_a_version_did_not_keep_are_not_guessed(world: Path, registry: Registry, tmp_path: Path) -> None:
    version = registry.resolve("toy@1")
    other = Registry(tmp_path / "other")
    other.publish("toy", version.path, version.card())
    second = registry.resolve("toy@2")
    other.publish("toy", second.path, second.card())
    assert [each.rows for each in diff("toy@1", "toy@2", other).data.values()] == [None] * 3


# Probes


def probe_file(version: Version, change: dict[str, object]) -> str:
    first, *others = (version.path / PROBES_FILE).read_text().splitlines()
    record = json.loads(first)
    return (
        json.dumps({**record, "answer": {**record["answer"], **change}})
        + "\n"
        + "".join(f"{each}\n" for each in others)
    )


def test_a_version_keeps_a_few_questions_with_its_answers_and_no_gold(registry: Registry) -> None:
    kept = read_probes(registry.resolve("toy@2"))
    assert len(kept) == 4
    assert [probe.fields for probe in kept] == [{"text": row.text} for row in choose_probes(toy_rows(30, 2), 4)]
    assert all(sum(probe.answer["probs"].values()) == pytest.approx(1, abs=1e-4) for probe in kept)


def test_probes_are_answered_as_they_were(registry: Registry, bases: Bases) -> None:
    assert replay_all(registry, bases=bases) == []
    assert replay_all(registry, "toy@1", bases) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"probs": {"blue": 0.9, "red": 0.1}}, "a probability moved by 0."),
        ({"probs": {"blue": 0.5, "green": 0.5}}, "a probability moved by inf"),
    ],
)
def test_an_answer_that_drifted_is_found(
    registry: Registry, bases: Bases, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    version = registry.resolve("toy@1")
    other = Registry(tmp_path / "other")
    text = probe_file(version, change)
    other.publish("toy", version.path, version.card(), {PROBES_FILE: text})
    (problem,) = replay_all(other, bases=bases)
    assert (problem.where, problem.note) == ("toy@1", False)
    assert "probe 1 of 4 is answered otherwise" in problem.message
    assert says in problem.message


def test_a_version_that_cannot_be_answered_is_told(registry: Registry, bases: Bases) -> None:
    version = registry.resolve("toy@2")
    (version.path / "adapter_model.safetensors").write_bytes(b"")
    found = replay_all(registry, bases=bases)
    assert [problem.where for problem in found] == ["toy@2"]
    assert "its probes cannot be answered" in found[0].message


def test_a_version_without_probes_is_noted_and_a_base_that_is_gone_told(
    registry: Registry, bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.resolve("toy@1")
    other = Registry(tmp_path / "other")
    other.publish("toy", version.path, version.card())
    (note,) = replay_all(other, bases=bases)
    assert note.note
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "empty"))
    (problem,) = replay_all(other)
    assert "its base cannot be had" in problem.message


def test_vectors_and_completions_drift_by_their_own_rules() -> None:
    assert probes._drift({"completion": "a"}, {"completion": "a"}) is None
    assert probes._drift({"completion": "a"}, {"completion": "b"}) == "'a' became 'b'"
    assert probes._drift({"vector": [1.0, 0.0]}, {"vector": [1.0, 0.01]}) is None
    assert "cosine of 0.0000" in str(probes._drift({"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0]}))
    assert "cosine of 0.0000" in str(probes._drift({"vector": [1.0, 0.0]}, {"vector": [1.0]}))
    assert probes._drift({"probs": {"a": 0.5}}, {"probs": {"a": 0.51}}) is None


def test_as_many_probes_as_the_recipe_says_and_no_more_than_rows() -> None:
    assert choose_probes(toy_rows(3, 0), 0) == []
    assert len(choose_probes(toy_rows(3, 0), 9)) == 3


# Archives


def test_an_exported_version_is_imported_with_digest_card_and_probes(
    world: Path, registry: Registry, tmp_path: Path
) -> None:
    version = registry.resolve("toy@2")
    export(version, tmp_path / "toy.tar")
    there = Registry(tmp_path / "there")
    taken = adopt(tmp_path / "toy.tar", there, Request("moved"))
    assert taken.digest == version.digest
    assert taken.attached(PROBES_FILE) == version.attached(PROBES_FILE)
    assert taken.card().metrics == version.card().metrics
    assert there.verify() == []


# Another base


def test_tasks_move_to_another_base_and_are_compared(world: Path, registry: Registry, bases: Bases) -> None:
    moves = plan(["toy@2"], str(world / "base-2"), registry, bases=bases, folders=[world], changed_data=True)
    assert [move.recipe.task for move in moves] == ["toy-base-2"]
    told: list[Rebased] = []
    (found,) = rebase(moves, registry, Recorder(), bases=bases, tell=told.append)
    assert isinstance(found, Rebased)
    assert told == [found]
    new, old = registry.resolve("toy-base-2"), registry.resolve("toy@2")
    assert new.card().parents == (old.digest,)
    assert new.base_fingerprint != old.base_fingerprint
    assert found.comparison is not None
    assert found.comparison.count == 30
    assert new.card().metrics["accuracy"]["value"] == pytest.approx(found.metrics[1]["accuracy"].value)
    assert found.metrics[0]["accuracy"].value == pytest.approx(old.card().metrics["accuracy"]["value"])
    assert new.card().recipe["training"]["epochs"] == 4
    record = found.to_record()
    assert json.loads(json.dumps(record))["comparison"] == record["comparison"]
    assert (record["old"]["ref"], record["new"]["ref"]) == ("toy@2", "toy-base-2@1")


def test_rows_that_changed_since_are_refused_unless_asked_for(world: Path, registry: Registry, bases: Bases) -> None:
    with pytest.raises(
        DataError, match=r"the train rows of toy@2 are not what they were \(79 then, 80 now .*--changed-data"
    ):
        plan(["toy@2"], str(world / "base-2"), registry, bases=bases, folders=[world])
    assert (
        plan(["toy@1"], str(world / "base-2"), registry, bases=bases, folders=[world], suffix="new")[0].recipe.task
        == "toy-new"
    )


def test_what_cannot_be_rebased_is_said_before_anything_is_trained(
    world: Path, registry: Registry, bases: Bases, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"is on .* already"):
        plan(["toy@1"], str(world / "base"), registry, bases=bases, folders=[world])
    with pytest.raises(FileMissing, match=r"made from '\w+\.jsonl', which lies in none of: .*; say where"):
        plan(["toy@1"], str(world / "base-2"), registry, bases=bases, folders=[tmp_path])
    with pytest.raises(UsageError, match="two of the refs would become 'toy-base-2'"):
        plan(["toy@1", "toy@2"], str(world / "base-2"), registry, bases=bases, folders=[world], changed_data=True)
    with pytest.raises(UsageError, match="cannot be a task"):
        plan(["toy@1"], str(world / "base-2"), registry, bases=bases, folders=[world], suffix="/../x")
    with pytest.raises(BaseNotFound, match="was a folder"):
        plan(["toy@1"], str(world / "base-2"), registry, folders=[world])
    with pytest.raises(UsageError, match="--set base=x: the task, the base"):
        plan(["toy@1"], str(world / "base-2"), registry, bases=bases, folders=[world], overrides=["base=x"])
    version = registry.resolve("toy@1")
    record = dict(version.card().recipe)
    held = {**record, "data": {"train": "train.jsonl", "validation": None, "test": None}}
    registry.publish("held", version.path, replace(version.card(), recipe=held))
    with pytest.raises(UsageError, match=r"held its validation rows out of train, and --changed-data would hold out"):
        plan(["held"], str(world / "base-2"), registry, bases=bases, folders=[world], changed_data=True)
    registry.publish("strange", version.path, replace(version.card(), recipe={**record, "data": "all"}))
    with pytest.raises(UsageError, match="has data 'all'; write a recipe"):
        plan(["strange"], str(world / "base-2"), registry, bases=bases, folders=[world])
    voted = {**version.card().recipe, "labels": {"voters": ["evil.py"]}}
    registry.publish("voted", version.path, replace(version.card(), recipe=voted))
    with pytest.raises(UsageError, match="were made by voters"):
        plan(["voted"], str(world / "base-2"), registry, bases=bases, folders=[world])
    registry.publish("imported", version.path, replace(version.card(), recipe={}))
    with pytest.raises(UsageError, match="holds no recipe"):
        plan(["imported"], str(world / "base-2"), registry, bases=bases, folders=[world])


def test_data_are_found_under_the_path_they_had_and_never_guessed(
    world: Path, registry: Registry, bases: Bases, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for split in ("train", "validation", "test"):
            shutil.copy(world / f"{split}.jsonl", tmp_path / folder)
    version = registry.resolve("toy@1")
    data = {split: f"deep/{split}.jsonl" for split in ("train", "validation", "test")}
    registry.publish("moved", version.path, replace(version.card(), recipe={**version.card().recipe, "data": data}))
    target = str(world / "base-2")
    (found,) = plan(["moved"], target, registry, bases=bases, folders=[tmp_path / "one"])
    assert found.recipe.data.train == str(tmp_path / "one" / "train.jsonl")
    with pytest.raises(FileMissing, match="which lies in 2 of"):
        plan(["moved"], target, registry, bases=bases, folders=[tmp_path / "one", tmp_path / "two"])
    shutil.copytree(tmp_path / "two", tmp_path / "three" / "deep")
    (found,) = plan(["moved"], target, registry, bases=bases, folders=[tmp_path / "one", tmp_path / "three"])
    assert found.recipe.data.train == "deep/train.jsonl"
    assert found.recipe.resolve("deep/train.jsonl") == tmp_path / "three" / "deep" / "train.jsonl"


def test_a_rank_set_anew_brings_its_own_alpha(world: Path, registry: Registry, bases: Bases) -> None:
    target = str(world / "base-2")
    (found,) = plan(["toy@1"], target, registry, bases=bases, folders=[world], overrides=["lora.rank=16"])
    assert found.recipe.lora.alpha == 32
    (found,) = plan(["toy@1"], target, registry, bases=bases, folders=[world], overrides=["training.batch_tokens=512"])
    assert found.recipe.training.batch_tokens == 512
    assert "batch_size" not in found.recipe.to_record()["training"]
