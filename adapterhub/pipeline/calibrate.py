"""Between training and measuring: an adapter learns how sure it may say it is, and when to give no label at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base
from adapterhub.data.example import Example
from adapterhub.data.task import Calibration, TaskSpec
from adapterhub.data.tokens import check_length, encode_input
from adapterhub.errors import DataError, InvalidRequest
from adapterhub.recipe import LABELLED, Recipe
from adapterhub.registry.bundle import TASK_FILE

from .measure import Ask, answers
from .splits import Splits
from .temperature import Fit, confidences, fit_temperature
from .threshold import Threshold, keeping, separating

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub

    from .temperature import Table


@dataclass(frozen=True)
class Calibrated:
    """The rules of a task, calibrated where there was reason to, and for the card what was found and why."""

    spec: TaskSpec
    record: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        names = [name for name in ("temperature", "reject_below") if name in self.record]
        return "; ".join(f"{name} {self.record[name]}, {self.record[f'{name}_reason']}" for name in names)


@dataclass(frozen=True)
class Seen:
    """What a trained adapter answers to validation, and should: logits and targets [rows, labels], weights [rows].

    `outside` are its logits for the rows out of scope, [other rows, labels].
    """

    logits: Table
    targets: Table
    weights: Table
    outside: Table


def calibrate(recipe: Recipe, hub: AdapterHub, folder: Path, spec: TaskSpec, splits: Splits) -> Calibrated:
    """Find temperature and threshold as the recipe asks for, and write them into task.json of the trained `folder`.

    The adapter answers the validation rows through `hub`, as it will be served. The threshold is one on the
    probabilities that the temperature gives. With a temperature of 1 and no threshold the file stays as it is. Raises
    what answering raises.
    """
    if spec.kind not in LABELLED:
        return Calibrated(spec)
    asked = recipe.calibration
    seen = None
    if "auto" in (asked.temperature, asked.reject_below):
        seen = see(partial(hub.answers, hub.folder(folder)), spec, splits)
    fit = _temperature(asked.temperature, seen, spec)
    record: dict[str, Any] = {"temperature": fit.temperature, "temperature_reason": fit.reason}
    threshold = _threshold(asked.reject_below, seen, fit.temperature)
    if spec.kind == "classification":
        record |= {"reject_below": threshold.reject_below, "reject_below_reason": threshold.reason}
    if fit.temperature == 1 and threshold.reject_below is None:
        return Calibrated(spec, record)
    calibrated = replace(spec, calibration=Calibration(fit.temperature, threshold.reject_below))
    (folder / TASK_FILE).write_text(calibrated.to_json(), encoding="utf-8", newline="\n")
    return Calibrated(calibrated, record)


def see(ask: Ask, spec: TaskSpec, splits: Splits) -> Seen:
    """Have the adapter answer all that calibration looks at; raises what answering raises."""
    import numpy as np

    from adapterhub.training.answers import target_of

    def logits_of(examples: Sequence[Example]) -> Table:
        found = np.empty((len(examples), len(spec.labels)))
        for row, answer in enumerate(answers(ask, examples)):
            found[row] = answer.logits
        return found

    targets = [target_of(example, spec.kind, spec.labels) for example in splits.validation]
    return Seen(
        logits=logits_of(splits.validation),
        targets=np.array(targets, np.float64).reshape(len(targets), len(spec.labels)),
        weights=np.array([example.weight for example in splits.validation], np.float64),
        outside=logits_of(splits.outside.get("validation", ())),
    )


def check_outside(base: Base, spec: TaskSpec, splits: Splits) -> None:
    """Raise DataError for an out-of-scope row that could not be answered: after training is no time to find out."""
    from adapterhub.base.load import load_tokenizer

    rows = [row for each in splits.outside.values() for row in each]
    if not rows:
        return
    tokenizer = load_tokenizer(base, spec.pad_token)
    for example in rows:
        try:
            check_length(encode_input(tokenizer, spec, example.fields), spec)
        except InvalidRequest as error:
            raise DataError(f"{example.where}: {error}") from error


def _temperature(asked: str | float, seen: Seen | None, spec: TaskSpec) -> Fit:
    if isinstance(asked, float):
        return Fit(asked, "set by the recipe")
    if asked == "none":
        return Fit(1.0, "not asked for")
    assert seen is not None
    return fit_temperature(seen.logits, seen.targets, seen.weights, spec.kind)


def _threshold(asked: str | float, seen: Seen | None, temperature: float) -> Threshold:
    if isinstance(asked, float):
        return Threshold(asked, "set by the recipe")
    if asked == "none":
        return Threshold(None, "not asked for")
    assert seen is not None
    inside = confidences(seen.logits, temperature)
    if len(seen.outside):
        return separating(inside, confidences(seen.outside, temperature))
    return keeping(inside[seen.logits.argmax(1) == seen.targets.argmax(1)])
