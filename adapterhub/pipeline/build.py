"""From a recipe to a published version: read, train, measure, publish."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.errors import ConfigError
from adapterhub.metrics import Metric, evaluate
from adapterhub.recipe import Recipe
from adapterhub.registry.card import Card
from adapterhub.registry.provenance import git_commit, package_versions
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published

from .splits import Splits, read_splits

if TYPE_CHECKING:
    from adapterhub.training.job import Progress, TrainingResult

# Unless the recipe says otherwise: bases advertise contexts far longer than a task's texts, and memory follows length.
DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True)
class BuildResult:
    """A published version, how good it is, on which split that was measured, and how its training went."""

    published: Published
    metrics: Mapping[str, Metric]
    measured_on: str
    training: TrainingResult

    def to_record(self) -> dict[str, Any]:
        """Return what scripts read; the keys are pinned."""
        return {
            "task": self.published.task,
            "ref": self.published.ref,
            "version": self.published.version,
            "digest": self.published.digest,
            "path": str(self.published.path.absolute()),
            "created": self.published.created,
            "metrics": {name: metric.to_record() for name, metric in self.metrics.items()},
            "examples_per_second": self.training.examples_per_second,
            "tokens_per_second": self.training.tokens_per_second,
            "peak_memory_bytes": self.training.peak_memory_bytes,
        }


def build(recipe: Recipe, registry: Registry, progress: Progress) -> BuildResult:
    """Make the adapter of `recipe` and publish it; nothing is published unless everything before succeeded.

    Raises what its stages raise: ConfigError, DataError, BaseNotFound, BaseError, BaseMismatch, TrainingError.
    """
    from adapterhub.training.job import TrainingJob
    from adapterhub.training.train import train_adapter

    progress.stage(f"{recipe.task}: reading {recipe.data.train}")
    splits = read_splits(recipe)
    base = open_base(recipe.base_name, progress=_Stages(progress))
    registry.check_base(recipe.task, base.fingerprint)
    spec = make_spec(recipe, base, splits.labels)
    progress.stage(
        f"{recipe.task}: {len(splits.train)} rows to train on, {len(splits.validation)} to validate on"
        f"{f' ({splits.held_out})' if splits.held_out else ''}; base {base.name}"
    )
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as scratch:
        folder = Path(scratch) / "adapter"
        result = train_adapter(TrainingJob(recipe, base, spec, splits.train, splits.validation), folder, progress)
        gc.collect()  # The training model goes before the one that answers comes.
        measured_on, examples = splits.measured
        progress.stage(f"{recipe.task}: final metrics on {len(examples)} {measured_on} rows")
        metrics = measure(base, registry, folder, result.spec, examples, recipe.training.precision)
        card = make_card(recipe, base, splits, result, metrics)
        published = registry.publish(recipe.task, folder, card)
    return BuildResult(published, metrics, measured_on, result)


def make_spec(recipe: Recipe, base: Base, labels: Sequence[str]) -> TaskSpec:
    """Return the rules of a recipe's task on a base; pooling is left for training to find out.

    Raises ConfigError where the recipe asks for a context, a chat template or a use that the base does not have.
    """
    if recipe.kind == "generation" and base.is_encoder:
        raise ConfigError(
            f"{recipe.path}: kind is 'generation', but base {base.name!r} is an encoder, which cannot write; "
            "use a decoder such as smollm2-135m-instruct"
        )
    if recipe.max_length is not None and recipe.max_length > base.context_length:
        raise ConfigError(
            f"{recipe.path}: max_length is {recipe.max_length}, but base {base.name!r} reads {base.context_length} "
            f"tokens; set it to {base.context_length} or less"
        )
    return TaskSpec(
        kind=recipe.kind,
        base_fingerprint=base.fingerprint,
        max_length=recipe.max_length or min(base.context_length, DEFAULT_MAX_LENGTH),
        labels=tuple(labels),
        prompt=_prompt(recipe, base),
        pad_token=recipe.pad_token,
    )


def _prompt(recipe: Recipe, base: Base) -> PromptSpec:
    """Settle the prompt's style, and copy the base's chat template, so that it is the same wherever it is served."""
    style, asked = recipe.prompt.style, recipe.prompt
    if recipe.kind != "generation" or style == "plain":
        if style == "chat":
            raise ConfigError(f"{recipe.path}: prompt.style is 'chat', which only kind 'generation' has; leave it out")
        return PromptSpec("plain", asked.system, asked.template)
    from adapterhub.base.load import load_tokenizer

    template = load_tokenizer(base, recipe.pad_token).chat_template
    if isinstance(template, str):
        return PromptSpec("chat", asked.system, asked.template, template)
    if style == "chat":
        raise ConfigError(
            f"{recipe.path}: prompt.style is 'chat', but base {base.name!r} has no chat template; set it to 'plain'"
        )
    return PromptSpec("plain", asked.system, asked.template)


def measure(
    base: Base, registry: Registry, folder: Path, spec: TaskSpec, examples: Sequence[Example], precision: str
) -> dict[str, Metric]:
    """Return the metrics of an adapter folder, answering through the same runtime that serves it."""
    from adapterhub.runtime.hub import AdapterHub

    hub = AdapterHub(base=base, registry=registry, precision=precision)
    try:
        predictions = hub.predict_folder(folder, [example.fields for example in examples])
    finally:
        hub.close()
    name = {"classification": "label", "multilabel": "labels", "generation": "completion"}[spec.kind]
    gold = [getattr(example, name) for example in examples]
    return evaluate(spec.kind, gold, [getattr(prediction, name) for prediction in predictions], spec.labels)


def make_card(
    recipe: Recipe, base: Base, splits: Splits, result: TrainingResult, metrics: Mapping[str, Metric]
) -> Card:
    """Return the card: where everything came from, and what came of it."""
    return Card(
        kind=recipe.kind,
        base={
            "name": base.name,
            "public_id": base.public_id,
            "fingerprint": base.fingerprint,
            "derived_from": base.derived_from,
        },
        task=recipe.task,
        recipe=recipe.to_record(),
        data=splits.to_record(),
        labels=splits.labels,
        metrics={name: metric.to_record() for name, metric in metrics.items()},
        measured_on=splits.measured[0],
        training={**result.to_record(), "seed": recipe.training.seed},
        packages=package_versions(),
        git_commit=git_commit(recipe.path.parent),
        description=recipe.description,
        license=recipe.license,
        language=recipe.language,
        datasets=recipe.datasets,
    )


class _Stages:
    """Tells training's progress what fetching a base tells, one line a step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = ""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        if step != self._last:
            self._progress.stage(step)
            self._last = step
