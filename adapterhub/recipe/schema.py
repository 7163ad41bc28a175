"""The schema of recipes: what a file may say, and what holds where it says nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from adapterhub.errors import ConfigError

from .curate import Curate
from .output import OutputRule
from .section import Section
from .values import (
    DATASET_PREFIX,
    LABELLED,
    MAX_RANK,
    Kind,
    Names,
    NonEmpty,
    check_balance,
    check_balance_names,
    check_layers,
    check_pattern,
    check_reject_below,
    check_targets,
    check_task,
    check_temperature,
    check_template,
    read_class_weights,
)


def _without_empty(given: Any, name: str) -> Any:
    """Return a section without the key `name` where that is empty, so that an empty section means its defaults."""
    if not isinstance(given, dict):
        return given
    return {key: value for key, value in given.items() if key != name or value is not None}


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


class Labels(Section):
    """The labels made here: `voters` are files of labelling functions (.py), prompts (.yaml) and votes (.csv).

    What they say of the rows of `data.train`, which need no labels, is combined by `model` into soft labels. `balance`
    is how common each label is, where that is known. `names` are all labels in order. `corrections` are a file of
    right labels that somebody gave, which count more than any voter.
    """

    voters: Annotated[tuple[NonEmpty, ...], Field(strict=False, min_length=1)]
    model: Literal["auto", "majority", "dawid-skene", "metal"] = "auto"
    balance: Annotated[Mapping[str, Annotated[float, Field(gt=0, le=1)]] | None, AfterValidator(check_balance)] = None
    names: Names | None = None
    corrections: NonEmpty | None = None


# The key `labels` has two forms: names, or a section. What pydantic calls them stands in no message.
FORMS = ("names", "section")
LabelsKey = Annotated[
    Annotated[Names, Tag("names")] | Annotated[Labels, Tag("section")],
    Discriminator(lambda value: "section" if isinstance(value, (dict, Labels)) else "names"),
]


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
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(check_targets)] = "all-linear"
    layers: Annotated[str | tuple[int, ...], BeforeValidator(check_layers)] = "all"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    variant: Literal["lora", "rslora", "dora"] = "lora"
    init: Literal["default", "pissa"] = "default"
    rank_pattern: Annotated[Mapping[str, Annotated[int, Field(ge=1, le=MAX_RANK)]], AfterValidator(check_pattern)] = {}

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
    class_weights: Annotated[Literal["balanced"] | Mapping[str, float] | None, BeforeValidator(read_class_weights)] = (
        None
    )

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

    temperature: Annotated[Literal["auto", "none"] | float, BeforeValidator(check_temperature)]
    reject_below: Annotated[Literal["auto", "none"] | float, BeforeValidator(check_reject_below)]


class Recipe(Section):
    """How a task's adapter is made. `path` is the file it was read from; `probes` measured rows go with the version."""

    task: Annotated[str, AfterValidator(check_task)]
    base: NonEmpty
    kind: Kind
    data: Data
    description: str = ""
    license: str | None = None
    language: Names = ()
    datasets: Names = ()
    labels: LabelsKey | None = None
    curate: Curate | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    prompt: Prompt = Prompt()
    output: OutputRule | None = None
    pad_token: NonEmpty | None = None
    init: NonEmpty | None = None
    lora: Lora = Lora(alpha=16.0)
    training: Training = Training(epochs=3.0)
    calibration: Calibration
    probes: Annotated[int, Field(ge=0, le=100)] = 4
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

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """All labels in order, where the recipe names them."""
        return self.labels.names if isinstance(self.labels, Labels) else self.labels

    @property
    def labelling(self) -> Labels | None:
        """How labels are made, where the training rows have none."""
        return self.labels if isinstance(self.labels, Labels) else None

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> Recipe:
        if self.labelling is not None:
            if self.kind != "classification":
                raise ValueError(f"labels are made for classification, but kind is {self.kind!r}; give labelled rows")
            check_balance_names(self.labelling.balance, self.label_names)
        if self.label_names is not None:
            if self.kind not in LABELLED:
                a_task = "an embedding task" if self.kind == "embedding" else f"a {self.kind} task"
                raise ValueError(f"labels are given, but {a_task} has none; leave them out")
            needed = 2 if self.kind == "classification" else 1
            if len(self.label_names) < needed:
                raise ValueError(f"labels has {len(self.label_names)} name(s); {self.kind} needs at least {needed}")
        return self

    @model_validator(mode="after")
    def _curation_fits_the_kind(self) -> Recipe:
        if self.curate is None:
            return self
        kinds = ("classification", "multilabel", "generation") if self.curate.by == "influence" else ("classification",)
        if self.kind not in kinds:
            raise ValueError(
                f"curate is given, but kind is {self.kind!r}; only {' and '.join(kinds)} rows are judged so, leave it "
                "out"
            )
        if self.curate.target is not None and self.curate.target in (self.data.test, self.data.validation):
            raise ValueError(
                f"curate.target is {self.curate.target!r}, which is measured on: rows chosen to be like it would "
                "flatter the task; name other rows"
            )
        return self

    @model_validator(mode="after")
    def _output_fits_the_kind(self) -> Recipe:
        if self.output is not None and self.kind not in ("generation", "preference"):
            raise ValueError(f"output is given, but kind is {self.kind!r}, which writes no text; leave it out")
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
        if isinstance(weights, Mapping) and self.label_names is not None:
            check_class_weights(weights, self.label_names)
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
        for section in ("curate", "output"):
            if record[section] is None:
                del record[section]  # cards and digests of recipes without it stay as they were
        if record.get("curate", {}).get("target", "") is None:
            del record["curate"]["target"]
        record["training"] = {k: v for k, v in record["training"].items() if v is not None or k not in _USES}
        if record["training"]["batch_tokens"] is not None:
            del record["training"]["batch_size"]  # a default that is not used; both together are refused
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
