"""`task.json`: what, besides weights, changes the answers of an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.errors import CorruptAdapter, InvalidRequest

from .output import Output

# Beyond these bounds a temperature says nothing any more: all certain, or all alike.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0

if TYPE_CHECKING:
    from adapterhub import recipe

Kind = Literal["classification", "multilabel", "generation", "embedding"]
KINDS: tuple[Kind, ...] = ("classification", "multilabel", "generation", "embedding")
Pooling = Literal["last", "pooler", "cls", "mean"]
# How hidden states become a text's vector: their mean, the last, or the first.
FeaturePooling = Literal["mean", "last", "cls"]
FEATURE_POOLINGS: tuple[FeaturePooling, ...] = ("mean", "last", "cls")


def task_kind(kind: recipe.Kind) -> Kind:
    """Return what a task is served as that was trained as `kind`: preferences teach a generation task."""
    return "generation" if kind == "preference" else kind


def a_task(kind: Kind) -> str:
    """Return a task of this kind as a part of a sentence."""
    return f"{'an' if kind == 'embedding' else 'a'} {kind} task"


@dataclass(frozen=True)
class PromptSpec:
    """How a record's fields become the text a task sees.

    `style` is "plain" (the text as it is) or "chat" (messages through `chat_template`). `template` names fields in
    braces, `{text}`; None means the bare text or prompt.
    """

    style: Literal["plain", "chat"] = "plain"
    system: str | None = None
    template: str | None = None
    chat_template: str | None = None


@dataclass(frozen=True)
class Calibration:
    """How sure a head may say it is, and from where on it says nothing.

    Logits are divided by `temperature` before softmax or sigmoid (Guo et al., "On calibration of modern neural
    networks", ICML 2017), which changes no label. Where the highest probability is then below `reject_below`, no label
    is given; None always answers, and multilabel tasks have no other.
    """

    temperature: float
    reject_below: float | None = None


@dataclass(frozen=True)
class TaskSpec:
    """The rules a task was trained with; the same rules hold when it is served.

    `max_length` counts tokens: of the text, for generation of prompt and completion together.
    `pooling` says which states a head reads: "last" (rightmost non-pad token), "pooler" or "cls" (encoders). For
    embedding it says how a text becomes a vector: "mean", "last" or "cls" (the first token). None for generation.
    `base_fingerprint` is that of the base the adapter was trained on. `calibration` None is a temperature of 1 and
    always an answer. `output` is what the texts of a generation task look like; None is any text.
    """

    kind: Kind
    base_fingerprint: str
    max_length: int
    labels: tuple[str, ...] = ()
    prompt: PromptSpec = field(default_factory=PromptSpec)
    pooling: Pooling | None = None
    pad_token: str | None = None
    calibration: Calibration | None = None
    output: Output | None = None

    def to_json(self) -> str:
        """Return the canonical text: sorted keys, two spaces, final newline, so equal specs have equal bytes.

        A plain task is format 1, one with a calibration format 2, one with a rule for its output format 3: a program
        that knows nothing of what is new refuses it instead of answering otherwise.
        """
        record = {**asdict(self), "labels": list(self.labels), "format": self._format}
        del record["calibration"], record["output"]
        if self.calibration is not None:
            record["calibration"] = asdict(self.calibration)
        if self.output is not None:
            record["output"] = self.output.to_record()
        return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def _format(self) -> int:
        return 3 if self.output is not None else 1 if self.calibration is None else 2

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        """Read what `to_json` wrote; raises CorruptAdapter where it is anything else."""
        try:
            record: Mapping[str, Any] = json.loads(text)
            if record["format"] not in (1, 2, 3):
                raise CorruptAdapter(f"task.json has format {record['format']!r}; this program reads formats 1 to 3")
            if record["kind"] not in KINDS:
                raise CorruptAdapter(f"task.json has kind {record['kind']!r}; expected one of {', '.join(KINDS)}")
            return cls(
                kind=record["kind"],
                base_fingerprint=str(record["base_fingerprint"]),
                max_length=int(record["max_length"]),
                labels=tuple(record["labels"]),
                prompt=PromptSpec(**record["prompt"]),
                pooling=record["pooling"],
                pad_token=record.get("pad_token"),
                calibration=_read_calibration(record),
                output=_read_output(record),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CorruptAdapter(f"task.json is not a task description: {error!r}") from error


def _read_calibration(record: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration of a record, which format 2 has and format 1 has not; raises CorruptAdapter."""
    if record["format"] != 2:
        if "calibration" in record:
            raise CorruptAdapter(f"task.json has format {record['format']} and a calibration; that is format 2")
        return None
    given = Calibration(**record["calibration"])
    temperature, reject_below = given.temperature, given.reject_below
    if record["kind"] == "generation":
        raise CorruptAdapter("task.json has a calibration, but a generation task has no probabilities to calibrate")
    if not _is_within(temperature, LEAST_TEMPERATURE, MOST_TEMPERATURE):
        raise CorruptAdapter(
            f"task.json has calibration.temperature {temperature!r:.80}; expected a number from {LEAST_TEMPERATURE} to "
            f"{MOST_TEMPERATURE}"
        )
    if reject_below is None:
        return Calibration(float(temperature))
    if record["kind"] == "multilabel":
        raise CorruptAdapter("task.json has calibration.reject_below, which a multilabel task cannot have")
    if not _is_within(reject_below, 0, 1) or reject_below in (0, 1):
        raise CorruptAdapter(
            f"task.json has calibration.reject_below {reject_below!r:.80}; expected a number above 0 and below 1"
        )
    return Calibration(float(temperature), float(reject_below))


def _read_output(record: Mapping[str, Any]) -> Output | None:
    """Return the rule for the output, which format 3 has and no other; raises CorruptAdapter."""
    if record["format"] != 3:
        if "output" in record:
            raise CorruptAdapter(f"task.json has format {record['format']} and a rule for its output; that is format 3")
        return None
    if record["kind"] != "generation":
        raise CorruptAdapter(f"task.json has a rule for its output, but {a_task(record['kind'])} writes none")
    try:
        return Output.from_record(record["output"])
    except InvalidRequest as error:
        raise CorruptAdapter(f"task.json has a rule for its output that is none: {error}") from error


def _is_within(value: Any, least: float, most: float) -> bool:
    # Comparing lets a NaN fail, and an integer that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
