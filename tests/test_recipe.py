from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from adapterhub.errors import ConfigError
from adapterhub.recipe import Recipe, load_recipe, recipe_from

SMALLEST = """\
task: trec6
base: smollm2-135m-instruct
kind: classification
data: {train: data/train.jsonl}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def load(folder: Path, more: str = "", *overrides: str) -> Recipe:
    return load_recipe(write(folder, SMALLEST + more), overrides)


def refused(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value).splitlines()


def test_the_smallest_recipe_has_its_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.to_record() == {
        "task": "trec6",
        "base": "smollm2-135m-instruct",
        "kind": "classification",
        "data": {
            "train": "data/train.jsonl",
            "validation": None,
            "test": None,
            "out_of_scope": {"validation": None, "test": None},
        },
        "description": "",
        "license": None,
        "language": [],
        "datasets": [],
        "labels": None,
        "max_length": None,
        "prompt": {"style": None, "system": None, "template": None},
        "pad_token": None,
        "init": None,
        "lora": {
            "rank": 8,
            "alpha": 16.0,
            "targets": "all-linear",
            "layers": "all",
            "dropout": 0.0,
            "variant": "lora",
            "init": "default",
            "rank_pattern": {},
        },
        "training": {
            "epochs": 3.0,
            "steps": None,
            "batch_size": 32,
            "batch_tokens": None,
            "learning_rate": 1e-3,
            "schedule": "linear",
            "warmup": 0.06,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "lora_plus": 1.0,
            "seed": 0,
            "precision": "auto",
            "eval_every": None,
            "early_stopping": None,
        },
        "calibration": {"temperature": "auto", "reject_below": "none"},
        "probes": 4,
    }
    assert json.loads(json.dumps(recipe.to_record())) == recipe.to_record()


def test_defaults_follow_what_is_given(tmp_path: Path) -> None:
    recipe = load(tmp_path, "lora: {rank: 4}\ntraining: {steps: 10}\n", "kind=generation")
    assert recipe.lora.alpha == 8.0
    assert (recipe.training.epochs, recipe.training.steps) == (None, 10)
    assert recipe.training.learning_rate == 5e-4
    assert load(tmp_path, "lora: {rank: 4, alpha: 1}\n").lora.alpha == 1.0
    assert load(tmp_path, "lora:\ntraining:\nprompt:\ncalibration:\n").to_record() == load(tmp_path).to_record()
    assert load(tmp_path, "", "data.out_of_scope=null").to_record() == load(tmp_path).to_record()


@pytest.mark.parametrize(
    ("overrides", "temperature", "reject_below"),
    [
        ((), "auto", "none"),
        (("kind=multilabel",), "auto", "none"),
        (("kind=generation",), "none", "none"),
        (("data.out_of_scope.validation=o.jsonl",), "auto", "auto"),
        (("data.out_of_scope.test=o.jsonl",), "auto", "none"),
        (("data.out_of_scope.validation=o.jsonl", "calibration.reject_below=none"), "auto", "none"),
        (("calibration.reject_below=auto",), "auto", "auto"),
        (("calibration.temperature=2", "calibration.reject_below=0.6"), 2.0, 0.6),
        (("calibration.temperature=null",), "auto", "none"),
        (("kind=generation", "calibration.temperature=none"), "none", "none"),
    ],
)
def test_calibration_follows_kind_and_data(
    tmp_path: Path, overrides: tuple[str, ...], temperature: str | float, reject_below: str | float
) -> None:
    found = load(tmp_path, "", *overrides).calibration
    assert (found.temperature, found.reject_below) == (temperature, reject_below)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("kind=generation", "calibration.temperature=auto"), "a generation task has no probabilities; leave it out"),
        (("kind=generation", "calibration.reject_below=0.5"), "a generation task always answers; leave it out"),
        (("kind=multilabel", "calibration.reject_below=auto"), "a multilabel task always answers; leave it out"),
        (("kind=multilabel", "data.out_of_scope.test=o.jsonl"), "a multilabel task rejects nothing; leave it out"),
    ],
)
def test_a_kind_cannot_have_what_it_has_no_use_for(tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    (message,) = refused(tmp_path, SMALLEST, *overrides)
    assert said in message


def test_rows_out_of_scope_are_no_split(tmp_path: Path) -> None:
    data = load(tmp_path, "", "data.out_of_scope={validation: v.jsonl, test: t.jsonl}").data
    assert list(data.splits()) == [("train", "data/train.jsonl")]
    assert list(data.outside()) == [("validation", "v.jsonl"), ("test", "t.jsonl")]


def test_lists_and_layers(tmp_path: Path) -> None:
    recipe = load(tmp_path, "labels: [b, a]\nlora: {targets: [q_proj, v_proj], layers: [3, 1]}\n")
    assert recipe.labels == ("b", "a")
    assert recipe.lora.targets == ("q_proj", "v_proj")
    assert recipe.lora.layers == (1, 3)
    assert load(tmp_path, "lora: {layers: top-8}").lora.layers == "top-8"


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    recipe = load(tmp_path, "labels: [yes, no, on, 12:30, 2024-05-01, 010]\ntraining: {learning_rate: 1e-4}\n")
    assert recipe.labels == ("yes", "no", "on", "12:30", "2024-05-01", "010")
    assert recipe.training.learning_rate == 1e-4
    assert load(tmp_path, "", "training.learning_rate=2e-4", "language=[no]").language == ("no",)


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.resolve(recipe.data.train) == tmp_path / "data/train.jsonl"
    assert recipe.resolve("/data/x.csv") == Path("/data/x.csv")
    assert str(recipe.resolve("hf:org/name:config@test")) == "hf:org/name:config@test"
    assert load(tmp_path, "", "data.test=t.csv").data.test == "t.csv"


def test_a_base_may_be_a_path_beside_the_recipe(tmp_path: Path) -> None:
    assert load(tmp_path).base_name == "smollm2-135m-instruct"
    assert load(tmp_path, "", "base=org/name").base_name == "org/name"
    assert load(tmp_path, "", "base=./bases/tiny").base_name == str(tmp_path.resolve() / "bases/tiny")
    assert load(tmp_path, "", "base=/bases/tiny").base_name == "/bases/tiny"


def test_unknown_keys_name_the_nearest_known_one(tmp_path: Path) -> None:
    text = SMALLEST + "training: {epoch: 1}\nrank: 4\nlora: {zzz: 1}\n"
    file = tmp_path / "recipe.yaml"
    assert refused(tmp_path, text) == [
        f"{file}: unknown key 'lora.zzz'; "
        "known here: alpha, dropout, init, layers, rank, rank_pattern, targets, variant",
        f"{file}: unknown key 'training.epoch'; did you mean 'training.epochs'?",
        f"{file}: unknown key 'rank'; did you mean 'lora.rank'?",
    ]
    assert refused(tmp_path, SMALLEST, "data.out_of_scope.train=o.jsonl") == [
        "--set data.out_of_scope.train: unknown key 'data.out_of_scope.train'; did you mean 'data.train'?"
    ]
    assert refused(tmp_path, SMALLEST, "data.oos=o.jsonl") == [
        "--set data.oos: unknown key 'data.oos'; known here: out_of_scope, test, train, validation"
    ]


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    assert refused(tmp_path, "task: Trec\nkind: classify\ndata: {train: ''}\n") == [
        f"{file}: task is 'Trec': must be 1 to 64 lower-case letters, digits, '.', '_' or '-', "
        "and begin with a letter or digit",
        f"{file}: the key 'base' is missing; every recipe needs it",
        f"{file}: kind is 'classify': must be 'classification', 'multilabel', 'generation', 'preference' or "
        "'embedding'",
        f"{file}: data.train is '': must not be empty",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("lora: {rank: 0}", "lora.rank is 0: must be greater than or equal to 1"),
        ("lora: {rank: 8.5}", "lora.rank is 8.5: must be a valid integer"),
        ("lora: {rank: '8'}", "lora.rank is '8': must be a valid integer"),
        ("lora: {alpha: true}", "lora.alpha is True: must be a valid number"),
        ("lora: {dropout: 1}", "lora.dropout is 1: must be less than 1"),
        ("lora: {variant: vera}", "lora.variant is 'vera': must be 'lora', 'rslora' or 'dora'"),
        ("lora: {init: pissa, variant: dora}", "lora: init is 'pissa' and variant 'dora'; the two do not go together"),
        ("lora: {rank_pattern: {'a b': 4}}", "lora.rank_pattern: 'a b' is no module name or end of one"),
        (
            "training: {batch_size: 8, batch_tokens: 99}",
            "training: batch_size (8) and batch_tokens (99) are both given",
        ),
        ("lora: {targets: q_proj}", "lora.targets is 'q_proj': must be 'all-linear' or a list"),
        ("lora: {targets: []}", "lora.targets is []: must be 'all-linear' or a list"),
        ("lora: {layers: top-0}", "lora.layers is 'top-0': must be 'all', 'top-N'"),
        ("lora: {layers: [1, -1]}", "lora.layers is [1, -1]: must be 'all', 'top-N'"),
        ("lora: {layers: [1, 1]}", "lora.layers is [1, 1]: names a layer twice"),
        ("lora: 3", "lora is 3: must be a section with keys of its own"),
        ("training: fast", "training is 'fast': must be a section with keys of its own"),
        ("labels: [a]", "labels has 1 name(s); classification needs at least 2"),
        ("labels: [a, a]", "labels is ['a', 'a']: 'a' is given twice"),
        ("labels: [a, '']", "labels is ['a', '']: entry 2 is empty"),
        ("labels: [a, 1]", "labels.1 is 1: must be a valid string; put quotes around it"),
        ("license: true", "license is True: must be a valid string; put quotes around it"),
        ("max_length: 0", "max_length is 0: must be greater than or equal to 1"),
        ("prompt: {template: '{a b}'}", "prompt.template is '{a b}': '{a b}' is not a field name in braces"),
        ("prompt: {style: alpaca}", "prompt.style is 'alpaca': must be 'chat' or 'plain'"),
        ("training: {epochs: 1, steps: 2}", "training: epochs (1) and steps (2) are both given; keep one of them"),
        ("training: {epochs: 0}", "training.epochs is 0: must be greater than 0"),
        ("training: {learning_rate: .inf}", "training.learning_rate is inf: must be a finite number"),
        ("training: {warmup: 1.5}", "training.warmup is 1.5: must be less than or equal to 1"),
        ("training: {seed: -1}", "training.seed is -1: must be greater than or equal to 0"),
        ("calibration: {temperature: 0}", "calibration.temperature is 0: must be auto, none, or a number from 0.05 to"),
        ("calibration: {temperature: hot}", "calibration.temperature is 'hot': must be auto, none, or a number from"),
        ("calibration: {temperature: true}", "calibration.temperature is True: must be auto, none, or a number from"),
        ("calibration: {temperature: .inf}", "calibration.temperature is inf: must be auto, none, or a number from"),
        ("calibration: {reject_below: 1}", "calibration.reject_below is 1: must be auto, none, or a probability above"),
        ("calibration: {reject_below: '0.5'}", "calibration.reject_below is '0.5': must be auto, none, or a proba"),
        ("calibration: {reject: 0.5}", "unknown key 'calibration.reject'; did you mean 'calibration.reject_below'?"),
        ("calibration: warm", "calibration is 'warm': must be a section with keys of its own"),
        ("path: x", "unknown key 'path'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path: Path, more: str, said: str) -> None:
    (message,) = refused(tmp_path, SMALLEST + more)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: {said}")


def test_generation_has_no_labels(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, SMALLEST + "labels: [a, b]", "kind=generation")
    assert "a generation task has none" in message
    assert load(tmp_path, "labels: [a]", "kind=multilabel").labels == ("a",)


def test_other_kinds_than_the_labelled_ones_have_no_labels(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, SMALLEST + "labels: [a, b]", "kind=preference")
    assert "a preference task has none" in message
    (message,) = refused(tmp_path, SMALLEST + "labels: [a, b]", "kind=embedding")
    assert "an embedding task has none" in message


class TestKeysOfSomeKinds:
    def test_defaults_are_those_of_the_kind(self, tmp_path: Path) -> None:
        preference = load(tmp_path, "", "kind=preference").training
        embedding = load(tmp_path, "", "kind=embedding").training
        plain = load(tmp_path).training
        assert (preference.beta, preference.contrastive_temperature, preference.learning_rate) == (0.1, None, 2e-4)
        assert (embedding.beta, embedding.contrastive_temperature, embedding.learning_rate) == (None, 0.05, 5e-4)
        assert (plain.label_smoothing, plain.class_weights, plain.beta) == (None, None, None)

    def test_what_is_not_set_is_not_recorded(self, tmp_path: Path) -> None:
        assert "beta" not in load(tmp_path).to_record()["training"]
        record = load(tmp_path, "", "kind=preference").to_record()["training"]
        assert record["beta"] == 0.1
        assert "contrastive_temperature" not in record
        weighed = load(tmp_path, "training: {class_weights: {a: 2, b: 0.5}, label_smoothing: 0.1}")
        record = json.loads(json.dumps(weighed.to_record()))["training"]
        assert (record["class_weights"], record["label_smoothing"]) == ({"a": 2.0, "b": 0.5}, 0.1)

    @pytest.mark.parametrize(
        ("setting", "kind", "who"),
        [
            ("beta=0.1", "generation", "only preference has"),
            ("contrastive_temperature=0.1", "preference", "only embedding has"),
            ("label_smoothing=0.1", "multilabel", "only classification has"),
            ("label_smoothing=0", "embedding", "only classification has"),
            ("class_weights=balanced", "generation", "only classification and multilabel have"),
        ],
    )
    def test_a_key_the_kind_has_no_use_for_is_refused(self, tmp_path: Path, setting: str, kind: str, who: str) -> None:
        (message,) = refused(tmp_path, SMALLEST, f"kind={kind}", f"training.{setting}")
        assert f"training.{setting.partition('=')[0]} is " in message
        assert f"but kind is {kind!r}; {who} a use for it, so leave it out" in message

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("training: {beta: 0}", "training.beta is 0: must be greater than 0"),
            ("training: {label_smoothing: 1}", "training.label_smoothing is 1: must be less than 1"),
            ("training: {class_weights: even}", "training.class_weights is 'even': must be 'balanced', or weights"),
            ("training: {class_weights: {}}", "training.class_weights: must be 'balanced', or weights"),
            ("training: {class_weights: {a: 0}}", "training.class_weights: gives 'a' the weight 0"),
            ("training: {class_weights: {a: x}}", "training.class_weights: gives 'a' the weight 'x'"),
            (
                "labels: [spam, ham]\ntraining: {class_weights: {span: 2}}",
                "training.class_weights names 'span', which is no label; did you mean 'spam'?",
            ),
        ],
    )
    def test_wrong_values_are_named(self, tmp_path: Path, more: str, said: str) -> None:
        (message,) = refused(tmp_path, SMALLEST + more)
        assert message.startswith(f"{tmp_path / 'recipe.yaml'}: {said}")

    def test_none_means_no_weights(self, tmp_path: Path) -> None:
        assert load(tmp_path, "training: {class_weights: none}").training.class_weights is None
        assert load(tmp_path, "training: {class_weights: balanced}").training.class_weights == "balanced"


class TestOverrides:
    def test_values_are_yaml_and_sections_come_to_be(self, tmp_path: Path) -> None:
        overrides = ["training.epochs=1", "lora.targets=[q_proj]", "description=a = b", "data.test=null"]
        recipe = load(tmp_path, "", *overrides)
        assert recipe.training.epochs == 1.0
        assert recipe.lora.targets == ("q_proj",)
        assert recipe.description == "a = b"
        assert recipe.data.test is None

    def test_the_later_one_wins(self, tmp_path: Path) -> None:
        assert load(tmp_path, "", "lora.rank=1", "lora.rank=2").lora.rank == 2

    @pytest.mark.parametrize(("written", "override"), [("epochs: 3", "steps=7"), ("steps: 3", "epochs=7")])
    def test_epochs_replace_steps_and_the_other_way_round(self, tmp_path: Path, written: str, override: str) -> None:
        training = load(tmp_path, f"training: {{{written}}}", f"training.{override}").training
        assert {training.epochs, training.steps} == {None, 7}
        (message,) = refused(tmp_path, SMALLEST, "training.epochs=1", "training.steps=2")
        assert "both given" in message

    def test_errors_name_the_override(self, tmp_path: Path) -> None:
        assert refused(tmp_path, SMALLEST, "lora.rank=x", "training.epoch=1") == [
            "--set lora.rank: lora.rank is 'x': must be a valid integer",
            "--set training.epoch: unknown key 'training.epoch'; did you mean 'training.epochs'?",
        ]

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("rank", "expected KEY=VALUE"),
            ("=1", "expected KEY=VALUE"),
            ("lora..rank=1", "expected KEY=VALUE"),
            ("path=x", "expected KEY=VALUE"),
            ("task.name=x", "'task' holds 'trec6', which has no keys below it"),
            ("labels=[a", "not valid YAML"),
        ],
    )
    def test_what_is_no_override_is_refused(self, tmp_path: Path, override: str, said: str) -> None:
        (message,) = refused(tmp_path, SMALLEST, override)
        assert message.startswith(f"--set {override}")
        assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": the recipe is empty"),
        ("- task", ": the recipe holds ['task']"),
        ("task: a\nbase: [b\n", ":3: not valid YAML"),
        ("task: a\nbase: b\ntask: c\n", ":3: not valid YAML (key 'task' is given twice)"),
        ("task: a\nlora: {rank: 1, rank: 2}\n", ":2: not valid YAML (key 'rank' is given twice)"),
        ("task: a\n? [x]\n: b\n", ":2: not valid YAML (a key is not a plain name)"),
        ("task: !!python/object/apply:os.system ['false']\n", ":1: not valid YAML (could not determine a constructor"),
        ("task: !!int abc\n", ": not valid YAML"),
        ("task: &a [*a]\n", ":1: not valid YAML"),
        ("task: \x00\n", ": not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text)[0].startswith(f"{tmp_path / 'recipe.yaml'}{said}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such recipe file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"task: caf\xe9\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_recipes_do_not_change(tmp_path: Path) -> None:
    recipe: Any = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.epochs = 5


def test_the_docs_name_every_key() -> None:
    page = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    documented = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}

    def parts(annotation: object) -> Iterator[object]:
        yield annotation
        for part in get_args(annotation):
            yield from parts(part)

    def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in section.model_fields.items():
            sections = [
                part for part in parts(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel)
            ]
            for section_ in sections:
                yield from keys(section_, f"{prefix}{name}.")
            if name != "path" and not (sections and field.annotation in (*sections, sections[0] | None)):
                yield prefix + name

    assert documented == set(keys(Recipe))


@pytest.mark.parametrize("value", ["5", "null", "[1]"])
def test_a_section_overridden_whole_after_one_of_its_keys(tmp_path: Path, value: str) -> None:
    overrides = ("training.epochs=1", f"training={value}")
    if value == "null":
        assert load(tmp_path, "", *overrides).training.epochs == 3.0
        return
    (problem,) = refused(tmp_path, SMALLEST, *overrides)
    assert "training" in problem


def test_the_home_of_nobody_leads_nowhere(tmp_path: Path) -> None:
    recipe = load(tmp_path, "", "data.train=~nobody-of-that-name/t.jsonl", "base=~nobody-of-that-name/base")
    with pytest.raises(ConfigError, match=r"~nobody-of-that-name/t\.jsonl' leads nowhere"):
        recipe.resolve(recipe.data.train)
    with pytest.raises(ConfigError, match="leads nowhere"):
        _ = recipe.base_name


@pytest.mark.parametrize(
    "key", ["lora.rank", "lora.alpha", "training.epochs", "training.steps", "training.learning_rate"]
)
def test_numbers_beyond_all_measure_are_refused(tmp_path: Path, key: str) -> None:
    (problem,) = refused(tmp_path, SMALLEST, f"{key}=1{'0' * 400}")
    assert key in problem
    assert "top-9" in refused(tmp_path, SMALLEST, f"lora.layers=top-{'9' * 5000}")[0]


LABELLED_HERE = "labels: {voters: [rules.py, prompts.yaml], balance: {a: 0.4, b: 0.6}}\n"


def test_labels_may_be_names_or_a_section(tmp_path: Path) -> None:
    named = load(tmp_path, "labels: [b, a]\n")
    assert (named.label_names, named.labelling) == (("b", "a"), None)
    made = load(tmp_path, LABELLED_HERE, "labels.model=metal")
    assert made.label_names is None
    assert made.labelling is not None
    assert made.labelling.voters == ("rules.py", "prompts.yaml")
    assert made.labelling.model == "metal"
    assert recipe_from(made.to_record(), made.path) == made
    assert load(tmp_path, LABELLED_HERE, "labels.names=[b, a]").label_names == ("b", "a")


@pytest.mark.parametrize(
    ("more", "overrides", "said"),
    [
        ("labels: {voters: []}\n", (), "labels.voters is []"),
        ("labels: {voters: [a.py], modle: metal}\n", (), "unknown key 'labels.modle'; did you mean 'labels.model'?"),
        ("labels: {voters: [a.py], balance: {a: 0.5}}\n", (), "labels.balance: the shares add up to 0.5"),
        (LABELLED_HERE, ("labels.names=[a, c]",), "labels.names lacks 'b', which the other has"),
        (LABELLED_HERE, ("labels.names=[a, b, c]",), "labels.balance lacks 'c', which the other has"),
        (LABELLED_HERE, ("kind=multilabel",), "labels are made for classification, but kind is 'multilabel'"),
        ("labels: 3\n", (), "labels is 3"),
    ],
)
def test_a_wrong_section_of_labels_is_told_by_its_key(
    tmp_path: Path, more: str, overrides: tuple[str, ...], said: str
) -> None:
    (message,) = refused(tmp_path, SMALLEST + more, *overrides)
    assert said in message


WRITER = SMALLEST.replace("classification", "generation")
SCHEMA = '{"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}'


@pytest.mark.parametrize("written", [SCHEMA, "schema.json", json.dumps(SCHEMA)], ids=["inline", "file", "text"])
def test_an_output_schema_is_kept_as_a_text_in_its_own_order(tmp_path: Path, written: str) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    recipe = load_recipe(write(tmp_path, f"{WRITER}output: {{json_schema: {written}}}\n"))
    assert recipe.output is not None
    assert recipe.output.json_schema == json.dumps(json.loads(SCHEMA), separators=(",", ":"))
    # What a card holds is sorted, and made a recipe again where the file may be gone.
    record = json.loads(json.dumps(recipe.to_record(), sort_keys=True))
    assert recipe_from(record, tmp_path / "other" / "recipe.yaml").output == recipe.output


def test_an_output_of_choices_or_an_expression(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, f"{WRITER}output: {{choices: [yes, no]}}\n"))
    assert recipe.output is not None
    assert recipe.output.choices == ("yes", "no")
    assert load_recipe(write(tmp_path, f"{WRITER}output: {{json_schema: , choices: [yes]}}\n")).output is not None
    replaced = load_recipe(write(tmp_path, WRITER), ["output.regex='[0-9]+'"])
    assert replaced.to_record()["output"] == {"json_schema": None, "choices": None, "regex": "[0-9]+"}
    assert "output" not in load_recipe(write(tmp_path, WRITER)).to_record()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("{}", "output: give one of json_schema, choices and regex, not none"),
        ("{regex: a, choices: [b]}", "output: give one of json_schema, choices and regex, not choices and regex"),
        ("{json_schema: 3}", "output.json_schema is 3: must be a JSON schema, or the name of a file that holds one"),
        ("{json_schema: [a]}", "must be a JSON schema"),
        ("{json_schema: {const: .nan}}", "must be a JSON schema"),
        ("{json_schema: '{\"type\":'}", "must be a JSON schema"),
        ("{json_schema: none.json}", "output.json_schema is 'none.json': there is no such file"),
        ("{json_schema: .}", "output.json_schema is '.', which cannot be read"),
        ("{json_schema: cut.json}", "cut.json: not JSON"),
        ("{json_schema: list.json}", "list.json: a JSON schema is an object; this holds list"),
        ("{jsonschema: {}}", "did you mean 'output.json_schema'?"),
        ("{choices: [a, a]}", "'a' is given twice"),
        ("{regex: ''}", "must not be empty"),
        ("text", "must be a section"),
    ],
)
def test_an_output_that_is_wrong_is_told(tmp_path: Path, output: str, said: str) -> None:
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    problems = refused(tmp_path, f"{WRITER}output: {output}\n")
    assert any(said in problem for problem in problems), problems


def test_only_what_writes_text_has_an_output(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, f"{SMALLEST}output: {{regex: a}}\n")
    assert "output is given, but kind is 'classification', which writes no text; leave it out" in problem
    preference = SMALLEST.replace("classification", "preference")
    assert load_recipe(write(tmp_path, f"{preference}output: {{regex: a}}\n")).output is not None
