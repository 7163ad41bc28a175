"""Recipes: the YAML file that says how a task's adapter is made, as a schema that refuses what it does not know."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from adapterhub.errors import ConfigError

# What is trained. A preference recipe makes a generation task (`data.task.task_kind`); the others make their own kind.
Kind = Literal["classification", "multilabel", "generation", "preference", "embedding"]
LABELLED: frozenset[Kind] = frozenset({"classification", "multilabel"})
TASK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DATASET_PREFIX = "hf:"
MAX_RANK = 1024
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0  # as task.json may hold them

# In a prompt template: an escaped brace, a field, or a brace that is neither.
TEMPLATE_PART = re.compile(r"\{\{|\}\}|\{(?P<name>[A-Za-z_][A-Za-z0-9_-]*)\}|(?P<stray>[{}])")


def check_template(template: str) -> str:
    """Return `template` if its braces are fields (`{text}`) or doubled; raises ValueError otherwise."""
    for part in TEMPLATE_PART.finditer(template):
        if part["stray"]:
            around = template[part.start() : part.start() + 20]
            raise ValueError(f"{around!r} is not a field name in braces; write {{{{ and }}}} for braces that stay")
    return template


def _check_task(name: str) -> str:
    if not TASK_NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 64 lower-case letters, digits, '.', '_' or '-', and begin with a letter or digit"
        )
    return name


def _check_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"entry {index + 1} is empty; names are not")
        if name in names[:index]:
            raise ValueError(f"{name!r} is given twice")
    return names


def _check_targets(value: Any) -> Any:
    if value == "all-linear" or (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
        return tuple(value) if isinstance(value, list) else value
    raise ValueError("must be 'all-linear' or a list of module names such as [q_proj, v_proj]")


def _check_temperature(value: Any) -> Any:
    if value in ("auto", "none") or (_is_number(value) and LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE):
        return float(value) if _is_number(value) else value
    raise ValueError(f"must be auto, none, or a number from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}")


def _check_reject_below(value: Any) -> Any:
    if value in ("auto", "none") or (_is_number(value) and 0 < value < 1):
        return value
    raise ValueError("must be auto, none, or a probability above 0 and below 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_layers(value: Any) -> Any:
    if value == "all" or (isinstance(value, str) and re.fullmatch(r"top-[1-9][0-9]{0,3}", value)):
        return value
    if isinstance(value, list) and value and all(type(item) is int and item >= 0 for item in value):
        if len(set(value)) == len(value):
            return tuple(sorted(value))
        raise ValueError("names a layer twice")
    raise ValueError("must be 'all', 'top-N' such as top-8, or a list of layer numbers from 0 such as [6, 7]")


def _check_class_weights(value: Any) -> Any:
    if value is None or value in ("none", "balanced"):
        return None if value == "none" else value
    if not isinstance(value, dict) or not value:
        raise ValueError("must be 'balanced', or weights by label such as {spam: 3, ham: 1}")
    for label, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"gives {label!r} the weight {weight!r}; expected a number above 0")
    return {label: float(weight) for label, weight in value.items()}


def _check_pattern(ranks: Mapping[str, int]) -> Mapping[str, int]:
    for name in ranks:
        if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name):
            raise ValueError(f"{name!r} is no module name or end of one, such as down_proj or layers.0.mlp.down_proj")
    return ranks


Names = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_check_unique)]
NonEmpty = Annotated[str, Field(min_length=1)]


def _without_empty(given: Any, name: str) -> Any:
    """Return a section without the key `name` where that is empty, so that an empty section means its defaults."""
    if not isinstance(given, dict):
        return given
    return {key: value for key, value in given.items() if key != name or value is not None}


class Section(BaseModel):
    """A part of a recipe: nothing unknown, nothing changed after reading, no guessing at types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OutOfScope(Section):
    """Rows that have none of the task's labels: which to choose a threshold by, and which to measure on."""

    validation: NonEmpty | None = None
    test: NonEmpty | None = None


class Data(Section):
    """Where the examples are: paths relative to the recipe, or hf:NAME[:config][@split].

    Without a validation split, a tenth of the training rows is held out.
    """

    train: NonEmpty
    validation: NonEmpty | None = None
    test: NonEmpty | None = None
    out_of_scope: OutOfScope = OutOfScope()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        return _without_empty(given, "out_of_scope")

    def splits(self) -> Iterator[tuple[str, str]]:
        """Yield (split, as written) for each split of labelled rows that is given."""
        for split in ("train", "validation", "test"):
            if (name := getattr(self, split)) is not None:
                yield split, name

    def outside(self) -> Iterator[tuple[str, str]]:
        """Yield (split, as written) for each file of out-of-scope rows that is given."""
        for split in ("validation", "test"):
            if (name := getattr(self.out_of_scope, split)) is not None:
                yield split, name


class Prompt(Section):
    """How fields become text. `style` None: chat for generation where the base has a chat template, else plain."""

    style: Literal["chat", "plain"] | None = None
    system: str | None = None
    template: Annotated[str, AfterValidator(check_template)] | None = None


class Lora(Section):
    """Shape of the adapter; `alpha` is twice the rank unless given.

    `rank_pattern` gives modules, by the last parts of their names, another rank. `init` pissa begins at the weights'
    principal components.
    """

    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_check_targets)] = "all-linear"
    layers: Annotated[str | tuple[int, ...], BeforeValidator(_check_layers)] = "all"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    variant: Literal["lora", "rslora", "dora"] = "lora"
    init: Literal["default", "pissa"] = "default"
    rank_pattern: Annotated[Mapping[str, Annotated[int, Field(ge=1, le=MAX_RANK)]], AfterValidator(_check_pattern)] = {}

    @model_validator(mode="after")
    def _init_fits_the_variant(self) -> Lora:
        if self.init == "pissa" and self.variant == "dora":
            raise ValueError("init is 'pissa' and variant 'dora'; the two do not go together, keep one of them")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("alpha") is not None:
            return given
        rank = given.get("rank", 8)
        # Of any other rank nothing more needs saying than that it is wrong.
        return {**given, "alpha": 2.0 * rank} if isinstance(rank, int) and 0 < rank <= MAX_RANK else given


# The keys of `training` that not every kind has a use for: who has, and the value where none is given.
_USES: Mapping[str, tuple[tuple[Kind, ...], float | None]] = {
    "beta": (("preference",), 0.1),
    "contrastive_temperature": (("embedding",), 0.05),
    "label_smoothing": (("classification",), None),
    "class_weights": (("classification", "multilabel"), None),
}
_RATES: Mapping[str, float] = {"generation": 5e-4, "preference": 2e-4, "embedding": 5e-4}


class Training(Section):
    """How long and how fast it learns. `warmup` is a fraction of all steps, `eval_every` counts steps.

    A batch has `batch_size` rows, or as many as `batch_tokens` hold. `lora_plus` is how many times the rate of all else
    the B matrices learn at (LoRA+).

    `beta`, `contrastive_temperature`, `label_smoothing` and `class_weights` are None where the kind has no use for
    them.
    """

    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora_plus: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    eval_every: Annotated[int, Field(ge=1)] | None = None
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    beta: Annotated[float, Field(gt=0)] | None = None
    contrastive_temperature: Annotated[float, Field(gt=0)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    class_weights: Annotated[
        Literal["balanced"] | Mapping[str, float] | None, BeforeValidator(_check_class_weights)
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        lengths = [given.get(name) for name in ("epochs", "steps")]
        if None not in lengths:
            raise ValueError(f"epochs ({lengths[0]!r}) and steps ({lengths[1]!r}) are both given; keep one of them")
        sizes = [given.get(name) for name in ("batch_size", "batch_tokens")]
        if None not in sizes:
            raise ValueError(f"batch_size ({sizes[0]!r}) and batch_tokens ({sizes[1]!r}) are both given; keep one")
        return {**given, "epochs": 3.0} if lengths == [None, None] else given


class Calibration(Section):
    """How sure the task may say it is, and from where on it gives no label; Recipe fills in what is left out."""

    temperature: Annotated[Literal["auto", "none"] | float, BeforeValidator(_check_temperature)]
    reject_below: Annotated[Literal["auto", "none"] | float, BeforeValidator(_check_reject_below)]


class Recipe(Section):
    """How a task's adapter is made. `path` is the file it was read from."""

    task: Annotated[str, AfterValidator(_check_task)]
    base: NonEmpty
    kind: Kind
    data: Data
    description: str = ""
    license: str | None = None
    language: Names = ()
    datasets: Names = ()
    labels: Names | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    prompt: Prompt = Prompt()
    pad_token: NonEmpty | None = None
    init: NonEmpty | None = None
    lora: Lora = Lora(alpha=16.0)
    training: Training = Training(epochs=3.0)
    calibration: Calibration
    path: Annotated[Path, Field(exclude=True, strict=False)]

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Let an empty section mean its defaults, and choose what depends on kind and data."""
        names = ("lora", "prompt", "training", "calibration")
        sections = {name: {} if given.get(name) is None else given[name] for name in names}
        if isinstance(sections["calibration"], dict):
            said = {key: value for key, value in sections["calibration"].items() if value is not None}
            sections["calibration"] = {**_default_calibration(given), **said}
        training, kind = sections["training"], given.get("kind")
        if isinstance(training, dict) and isinstance(kind, str):
            chosen: dict[str, Any] = {name: value for name, (kinds, value) in _USES.items() if kind in kinds}
            chosen["learning_rate"] = _RATES.get(kind, 1e-3)
            sections["training"] = {**training, **{k: v for k, v in chosen.items() if training.get(k) is None}}
        return {**given, **sections}

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> Recipe:
        if self.labels is not None:
            if self.kind not in LABELLED:
                a_task = "an embedding task" if self.kind == "embedding" else f"a {self.kind} task"
                raise ValueError(f"labels are given, but {a_task} has none; leave them out")
            needed = 2 if self.kind == "classification" else 1
            if len(self.labels) < needed:
                raise ValueError(f"labels has {len(self.labels)} name(s); {self.kind} needs at least {needed}")
        return self

    @model_validator(mode="after")
    def _calibration_fits_the_kind(self) -> Recipe:
        asked = self.calibration
        if self.kind not in LABELLED and asked.temperature != "none":
            raise ValueError(
                f"calibration.temperature is given, but a {self.kind} task has no probabilities; leave it out"
            )
        if self.kind == "classification":
            return self
        if asked.reject_below != "none":
            raise ValueError(f"calibration.reject_below is given, but a {self.kind} task always answers; leave it out")
        if any(self.data.outside()):
            raise ValueError(f"data.out_of_scope is given, but a {self.kind} task rejects nothing; leave it out")
        return self

    @model_validator(mode="after")
    def _training_fits_the_kind(self) -> Recipe:
        for name, (kinds, _) in _USES.items():
            value = getattr(self.training, name)
            if value is not None and self.kind not in kinds:
                raise ValueError(
                    f"training.{name} is {value!r}, but kind is {self.kind!r}; only {' and '.join(kinds)} "
                    f"{'have' if len(kinds) > 1 else 'has'} a use for it, so leave it out"
                )
        weights = self.training.class_weights
        if isinstance(weights, Mapping) and self.labels is not None:
            check_class_weights(weights, self.labels)
        return self

    def resolve(self, name: str) -> Path:
        """Return where a path of this recipe leads; `hf:` names stay as they are.

        Raises ConfigError for the home folder of somebody who is not known here.
        """
        if name.startswith(DATASET_PREFIX):
            return Path(name)
        try:
            return self.path.parent / Path(name).expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{self.path}: {name!r} leads nowhere: {error} Write the whole path") from error

    @property
    def base_name(self) -> str:
        """The base as `open_base` takes it: a path that begins with `.` is relative to the recipe."""
        is_path = self.base.startswith((".", "~")) or Path(self.base).is_absolute()
        return str(self.resolve(self.base).resolve()) if is_path else self.base

    def to_record(self) -> dict[str, Any]:
        """Return the recipe with its defaults filled in, ready for JSON; without the place of the file.

        What only some kinds of training know is left out where it is not set.
        """
        record = self.model_dump(mode="json")
        record["training"] = {k: v for k, v in record["training"].items() if v is not None or k not in _USES}
        return record


def check_class_weights(weights: Mapping[str, float], labels: Sequence[str]) -> None:
    """Raise ValueError where `training.class_weights` names a label that the task does not have."""
    for label in weights:
        if label not in labels:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the labels are {', '.join(labels)}"
            raise ValueError(f"training.class_weights names {label!r}, which is no label; {hint}")


def _default_calibration(given: Mapping[str, Any]) -> dict[str, str]:
    """Return how a recipe calibrates that does not say: by validation, and rejecting where it can see what."""
    data = given.get("data")
    outside = data.get("out_of_scope") if isinstance(data, dict) else None
    seen = isinstance(outside, dict) and outside.get("validation") is not None
    return {
        "temperature": "auto" if given.get("kind") in LABELLED else "none",
        "reject_below": "auto" if seen and given.get("kind") == "classification" else "none",
    }


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, then apply `overrides` such as `training.epochs=1` (the value is YAML).

    Raises ConfigError, which names file, key and value of everything that is wrong.
    """
    file = Path(path)
    record = _read(file)
    overridden = {_override(record, text) for text in overrides}
    _replace_length(record, overridden)
    try:
        return Recipe.model_validate({**record, "path": file})
    except ValidationError as error:
        problems = [_problem(detail, file, overridden) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such recipe file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the recipe cannot be read as UTF-8 text ({error})") from error
    record = _parse(text, str(file))
    if not isinstance(record, dict):
        found = "is empty" if record is None else f"holds {record!r}"
        raise ConfigError(f"{file}: the recipe {found}; expected keys such as task, base, kind and data")
    if "path" in record:
        raise ConfigError(f"{file}: unknown key 'path'; where the data is goes under data, e.g. data.train")
    return record


def _override(record: dict[str, Any], text: str) -> tuple[str, ...]:
    """Put one `a.b=c` into `record`; return the keys that lead to it."""
    dotted, equals, value = text.partition("=")
    keys = tuple(key.strip() for key in dotted.split("."))
    if not equals or not all(keys) or keys == ("path",):
        raise ConfigError(f"--set {text}: expected KEY=VALUE with a key of the recipe, e.g. --set training.epochs=1")
    inner = record
    for key in keys[:-1]:
        if inner.get(key) is None:
            inner[key] = {}
        inner = inner[key]
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text}: {key!r} holds {inner!r}, which has no keys below it")
    inner[keys[-1]] = _parse(value, f"--set {text}")
    return keys


def _replace_length(record: dict[str, Any], overridden: set[tuple[str, ...]]) -> None:
    """Drop the file's epochs where steps were overridden, and the other way round: the override is meant instead."""
    for given, other in (("epochs", "steps"), ("steps", "epochs")):
        training = record.get("training")
        replaced = ("training", given) in overridden and ("training", other) not in overridden
        if replaced and isinstance(training, dict):
            training.pop(other, None)


_MESSAGES = {"model_type": "must be a section with keys of its own", "string_too_short": "must not be empty"}


def _problem(detail: ErrorDetails, file: Path, overridden: set[tuple[str, ...]]) -> str:
    keys = tuple(str(key) for key in detail["loc"])
    place = f"--set {'.'.join(keys)}" if any(keys[: len(given)] == given for given in overridden) else str(file)
    dotted = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key {dotted!r}; {_nearest(keys)}"
    if detail["type"] == "missing":
        return f"{place}: the key {dotted!r} is missing; every recipe needs it"
    message = _MESSAGES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace(
        "Input should", "must"
    )
    if not keys or isinstance(detail["input"], dict):
        return f"{place}: {dotted}{': ' if dotted else ''}{message}"
    hint = "; put quotes around it" if detail["type"] == "string_type" and _is_scalar(detail["input"]) else ""
    return f"{place}: {dotted} is {detail['input']!r}: {message}{hint}"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _nearest(keys: Sequence[str]) -> str:
    """Name the known key that was probably meant, in its section or anywhere else, or list what the section knows."""
    known = sorted(_known_keys())
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == ".".join(keys[:-1])]
    close = difflib.get_close_matches(keys[-1], beside, n=1)
    if close:
        return f"did you mean {'.'.join([*keys[:-1], close[0]])!r}?"
    elsewhere = [key for key in known if key.rpartition(".")[2] == keys[-1]]
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    return f"known here: {', '.join(beside)}"


def _known_keys(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if name != "path":
            yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")


class _Loader(yaml.SafeLoader):
    """Plain data with YAML 1.2's scalars: `no` is a word, `1e-3` a number; `12:30`, dates and 007 are text."""

    yaml_implicit_resolvers: Mapping[str, Any] = {}  # type: ignore[assignment]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{name}{line}: not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from error
