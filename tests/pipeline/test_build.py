"""From a recipe to a version, on tiny bases."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base.source import open_base
from adapterhub.errors import (
    AdapterHubError,
    BaseMismatch,
    BaseNotFound,
    ConfigError,
    DataError,
    FileMissing,
    NameTaken,
    Overloaded,
    UsageError,
)
from adapterhub.pipeline.adopt import Request, adopt
from adapterhub.pipeline.build import BuildResult, build
from adapterhub.pipeline.prepare import check_writable, make_spec
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.training.job import StepReport
from tests.pipeline.toys import QUICK, write_recipe, write_rows
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer, make_tiny_base
from tests.training.jobs import Recorder, toy_rows


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache and temporary folders in reach, so that a test sees what is left there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def run(path: Path, *overrides: str, progress: Any = None) -> BuildResult:
    return build(load_recipe(path, overrides), Registry(path.parent / "registry"), progress or Recorder())


def test_a_recipe_becomes_a_version_that_answers(tmp_path: Path, scratch: Path) -> None:
    progress = Recorder()
    result = run(write_recipe(tmp_path, description="Tells colours apart.", license="apache-2.0"), progress=progress)
    registry = Registry(tmp_path / "registry")
    version = registry.resolve("toy")
    assert version.ref == "toy@1"
    assert version.digest == result.published.digest
    assert result.published.created
    assert result.measured_on == "test"
    assert set(result.metrics) == {"accuracy", "macro_f1", "ece"}
    assert result.metrics["accuracy"].value > 0.9
    with AdapterHub(open_base(str(tmp_path / "base")), registry) as hub:
        answers = hub.predict("toy", [row.text for row in toy_rows(30, seed=2)])
    right = sum(answer.label == row.label for answer, row in zip(answers, toy_rows(30, seed=2), strict=True))
    assert right / 30 == pytest.approx(result.metrics["accuracy"].value)
    assert list(scratch.iterdir()) == []
    assert progress.told[-1] == "toy: final metrics on 30 test rows"


def test_the_card_says_where_it_came_from(tmp_path: Path) -> None:
    result = run(write_recipe(tmp_path, datasets=["org/colours"], language=["en"]))
    card = Registry(tmp_path / "registry").resolve("toy").card()
    assert card.kind == "classification"
    assert card.labels == ("blue", "red")
    assert card.base["public_id"] == "local/base"
    assert {name: part["rows"] for name, part in card.data.items()} == {"train": 80, "validation": 20, "test": 30}
    assert card.measured_on == "test"
    assert card.metrics["accuracy"] == result.metrics["accuracy"].to_record()
    assert card.training["steps"] == 20
    assert card.training["seed"] == 0
    assert card.training["best"]["metric"] == "accuracy"
    assert len(card.training["history"]) == 4
    assert card.recipe["training"]["learning_rate"] == 5e-3
    assert card.packages["torch"]
    assert card.datasets == ("org/colours",)
    assert str(tmp_path) not in card.to_json()


def test_the_record_for_scripts_has_the_pinned_keys(tmp_path: Path) -> None:
    record = run(write_recipe(tmp_path)).to_record()
    assert list(record) == [
        "task",
        "ref",
        "version",
        "digest",
        "path",
        "created",
        "metrics",
        "examples_per_second",
        "tokens_per_second",
        "peak_memory_bytes",
        "journal",
    ]
    assert record == json.loads(json.dumps(record))
    assert (record["task"], record["ref"], record["version"], record["created"]) == ("toy", "toy@1", 1, True)
    assert Path(record["path"]).is_absolute()
    assert (Path(record["path"]) / "adapter_model.safetensors").is_file()
    assert set(record["metrics"]["accuracy"]) == {"value", "low", "high"}


def test_the_same_recipe_again_is_the_same_version_and_another_seed_a_new_one(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    first, again, other = run(path), run(path), run(path, "training.seed=1")
    assert again.published.digest == first.published.digest
    assert (again.published.version, again.published.created) == (1, False)
    assert (other.published.version, other.published.created) == (2, True)


def test_without_validation_rows_of_train_are_held_out_and_without_test_they_measure(tmp_path: Path) -> None:
    progress = Recorder()
    result = run(write_recipe(tmp_path, data={"train": "train.jsonl"}), progress=progress)
    assert result.measured_on == "validation"
    assert any("72 rows to train on, 8 to validate on (held out of train)" in line for line in progress.told)
    data = Registry(tmp_path / "registry").resolve("toy").card().data
    assert {name: part["rows"] for name, part in data.items()} == {"train": 72, "validation": 8}
    assert {part["name"] for part in data.values()} == {"train.jsonl"}


def test_multilabel_is_measured_with_its_own_metrics(tmp_path: Path) -> None:
    rows = [
        {"text": "x" * (i % 2) + "y" * (i // 2 % 2) + "-", "labels": ["red"] * (i % 2) + ["blue"] * (i // 2 % 2)}
        for i in range(64)
    ]
    write_rows(tmp_path / "many.jsonl", rows)
    result = run(write_recipe(tmp_path, kind="multilabel", data={"train": "many.jsonl", "test": "many.jsonl"}))
    assert set(result.metrics) == {"micro_f1", "macro_f1"}
    assert result.training.spec.labels == ("blue", "red")


def test_generation_learns_json_answers_through_the_chat_template(tmp_path: Path) -> None:
    answer = '{"n":1}'
    rows = [{"prompt": "abc"[i % 3] * (i % 4 + 1), "completion": answer} for i in range(24)]
    write_rows(tmp_path / "asks.jsonl", rows)
    data = {"train": "asks.jsonl", "validation": "asks.jsonl", "test": "asks.jsonl"}
    training = {"steps": 100, "batch_size": 8, "learning_rate": 2e-2}
    result = run(write_recipe(tmp_path, kind="generation", data=data, training=training))
    spec = Registry(tmp_path / "registry").resolve("toy").spec()
    assert spec.prompt.style == "chat"
    assert spec.prompt.chat_template == CHAT_TEMPLATE
    assert spec.pooling is None
    assert set(result.metrics) == {"exact_match", "field_f1"}
    assert result.metrics["exact_match"].value == 1.0


def test_soft_labels_and_weights_are_learnt_from(tmp_path: Path) -> None:
    # The labels all say red; only probs know better.
    rows = [
        {
            "text": row.text,
            "label": "red",
            "probs": {str(row.label): 0.9, "red" if row.label == "blue" else "blue": 0.1},
        }
        for row in toy_rows(80)
    ]
    path = write_recipe(tmp_path)
    write_rows(tmp_path / "train.jsonl", rows)
    assert run(path).metrics["accuracy"].value > 0.9


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"data": {"train": "nowhere.jsonl"}}, FileMissing, "nowhere.jsonl"),
        ({"base": "./nowhere"}, BaseNotFound, "nowhere"),
        ({"max_length": 4096}, ConfigError, "max_length is 4096, but base .* reads 512 tokens"),
        ({"max_length": 5}, DataError, "rows are longer than max_length 5"),
        ({"prompt": {"style": "chat"}}, ConfigError, "prompt.style is 'chat'"),
        ({"lora": {"targets": ["c_attn"]}}, ConfigError, "lora.targets: 'c_attn'"),
        ({"lora": {"layers": "top-9"}}, ConfigError, "lora.layers: 'top-9', but this base has 3 layers"),
        ({"pad_token": "[PAD]"}, AdapterHubError, r"\[PAD\]"),
    ],
)
def test_what_cannot_be_built_is_said_and_nothing_is_published(
    tmp_path: Path, scratch: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run(write_recipe(tmp_path, **changes))
    assert not (tmp_path / "registry").exists()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_lacks_is_named_before_training(tmp_path: Path, split: str) -> None:
    path = write_recipe(tmp_path)
    write_rows(tmp_path / f"{split}.jsonl", [{"text": "x", "label": "red"}, {"text": "x", "label": "green"}])
    progress = Recorder()
    with pytest.raises(DataError, match=rf"{split}\.jsonl:2: .*'green'"):
        run(path, progress=progress)
    assert progress.steps == []


def test_one_label_is_nothing_to_learn(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, data={"train": "one.jsonl"})
    write_rows(tmp_path / "one.jsonl", [{"text": "x" * n, "label": "red"} for n in range(1, 20)])
    with pytest.raises(DataError, match="same answer, 'red'"):
        run(path)


def test_ctrl_c_publishes_nothing_and_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    class Interrupting(Recorder):
        def step(self, task: str, report: StepReport) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(write_recipe(tmp_path), progress=Interrupting())
    assert not (tmp_path / "registry").exists()
    assert list(scratch.iterdir()) == []


def test_a_task_bound_to_another_base_is_refused_before_training(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    run(path, "training.epochs=1")
    make_tiny_base(tmp_path / "other", seed=9)
    progress = Recorder()
    with pytest.raises(BaseMismatch):
        run(path, "base=./other", progress=progress)
    assert progress.steps == []


def test_an_encoder_cannot_generate(tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "bert", "bert")
    recipe = load_recipe(write_recipe(tmp_path, base="./bert", kind="generation"))
    with pytest.raises(ConfigError, match="is an encoder"):
        make_spec(recipe, open_base(str(tmp_path / "bert")), ())


def test_style_is_plain_where_the_base_has_no_chat_template(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, kind="generation")
    base = open_base(str(tmp_path / "base"))
    assert make_spec(load_recipe(path), base, ()).prompt.style == "chat"
    assert make_spec(load_recipe(path, ["prompt.style=plain"]), base, ()).prompt.style == "plain"
    (tmp_path / "base" / "chat_template.jinja").unlink()
    bare = open_base(str(tmp_path / "base"))
    assert make_spec(load_recipe(path), bare, ()).prompt.style == "plain"
    with pytest.raises(ConfigError, match="has no chat template"):
        make_spec(load_recipe(path, ["prompt.style=chat"]), bare, ())


def test_max_length_defaults_to_the_context_up_to_a_limit(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, training=QUICK))
    assert make_spec(recipe, open_base(str(tmp_path / "base")), ()).max_length == 512
    make_tiny_base(tmp_path / "long", max_position_embeddings=8192)
    assert make_spec(recipe, open_base(str(tmp_path / "long")), ()).max_length == 2048


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"text": "x" * 300, "label": "red", "n": 1},
            r"longer than max_length 40 tokens, the first at .*test\.jsonl:2",
        ),
        ({"text": "x", "label": "red"}, r"test\.jsonl:2: the field 'n' is missing"),
    ],
)
def test_a_test_row_that_cannot_be_read_is_found_before_training(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    path = write_recipe(tmp_path, max_length=40, prompt={"template": "{n}: {text}"})
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", [{**e.fields, "n": n} for n, e in enumerate(toy_rows(20))])
    write_rows(tmp_path / "test.jsonl", [{"text": "x", "label": "red", "n": 0}, row])
    progress = Recorder()
    with pytest.raises(DataError, match=said):
        run(path, progress=progress)
    assert progress.steps == []


def test_a_registry_that_cannot_be_written_to_is_found_before_training(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    (tmp_path / "registry").write_text("a file")
    progress = Recorder()
    with pytest.raises(UsageError, match=r"registry cannot be written to: .*--registry"):
        run(path, progress=progress)
    assert progress.steps == []
    (tmp_path / "registry").unlink()
    check_writable(tmp_path / "registry" / "toy")
    assert not (tmp_path / "registry").exists()


def test_an_adapter_that_cannot_be_published_is_kept_and_can_be_imported(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Overloaded("the disk is full")

    path = write_recipe(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Registry, "publish", full)
        with pytest.raises(Overloaded, match="the disk is full") as caught:
            run(path)
    (kept,) = (tmp_path / "cache" / "unpublished").iterdir()
    assert f"registry import {kept} --task toy" in str(caught.value)
    assert list(scratch.iterdir()) == []
    registry = Registry(tmp_path / "registry")
    published = adopt(kept, registry, Request("toy"))
    assert kept.name == f"toy-{published.digest.removeprefix('sha256:')[:16]}"
    assert published.digest == run(path, "task=other").published.digest
    assert registry.resolve("toy").card().training["steps"] == 20
    with AdapterHub(open_base(str(tmp_path / "base")), registry) as hub:
        assert hub.predict("toy", ["xxxx"])[0].label == "red"


def test_several_chat_templates_by_name_mean_the_default_one(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, kind="generation")
    for name, templates in (("tools", {"tool_use": "{{ 1 }}"}), ("both", {"default": "D", "tool_use": "{{ 1 }}"})):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = templates
        folder = make_tiny_base(tmp_path / name)
        (folder / "chat_template.jinja").unlink()
        tokenizer.save_pretrained(folder)
    both = make_spec(load_recipe(path), open_base(str(tmp_path / "both")), ()).prompt
    assert (both.style, both.chat_template) == ("chat", "D")
    assert make_spec(load_recipe(path), open_base(str(tmp_path / "tools")), ()).prompt.style == "plain"


def test_a_task_cannot_have_the_name_of_a_base(tmp_path: Path) -> None:
    with pytest.raises(NameTaken, match="name of a base"):
        run(write_recipe(tmp_path, "all-minilm-l6-v2"))
