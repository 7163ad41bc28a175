"""From a recipe to a published version: read, train, measure, publish."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.catalog import refuse_base_name
from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.data.task import PromptSpec, TaskSpec, task_kind
from adapterhub.errors import AdapterHubError, ConfigError, UsageError
from adapterhub.folders import cache_root
from adapterhub.metrics import Metric
from adapterhub.recipe import Recipe
from adapterhub.registry.bundle import CARD_FILE, digest_folder
from adapterhub.registry.card import Card
from adapterhub.registry.provenance import git_commit, package_versions
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published

from .calibrate import Calibrated, calibrate, check_outside
from .measure import answers, completion_limits, gold_answers, score
from .pairs import preference_of, retrieval_of
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

    An adapter that cannot be published although it was trained is kept, and the message says where. Raises what the
    stages raise: ConfigError, DataError, BaseNotFound, BaseError, BaseMismatch, TrainingError.
    """
    from adapterhub.training.job import TrainingJob
    from adapterhub.training.train import train_adapter

    progress.stage(f"{recipe.task}: reading {recipe.data.train}")
    splits = read_splits(recipe)
    base = open_base(recipe.base_name, progress=_Stages(progress))
    refuse_base_name(recipe.task)
    registry.check_base(recipe.task, base.fingerprint)
    check_writable(registry.root / recipe.task)
    spec = make_spec(recipe, base, splits.labels)
    check_outside(base, spec, splits)
    progress.stage(
        f"{recipe.task}: {len(splits.train)} rows to train on, {len(splits.validation)} to validate on"
        f"{f' ({splits.held_out})' if splits.held_out else ''}; base {base.name}"
    )
    job = TrainingJob(recipe, base, spec, splits.train, splits.validation, splits.test)
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as scratch:
        folder = Path(scratch) / "adapter"
        result = train_adapter(job, folder, progress)
        gc.collect()  # The training model goes before the one that answers comes.
        measured_on, examples = splits.measured
        calibrated = Calibrated(result.spec)
        try:
            calibrated = calibrate(recipe, base, registry, folder, result.spec, splits)
            result = replace(result, spec=calibrated.spec)
            if calibrated.record:
                progress.stage(f"{recipe.task}: {calibrated}")
            progress.stage(f"{recipe.task}: final metrics on {len(examples)} {measured_on} rows")
            metrics = measure(recipe, base, registry, folder, result.spec, examples, splits.measured_outside)
            card = make_card(recipe, base, splits, result, metrics, calibrated.record)
            published = registry.publish(recipe.task, folder, card)
        except AdapterHubError as error:
            kept = keep(recipe.task, folder, make_card(recipe, base, splits, result, {}, calibrated.record))
            raise type(error)(
                f"{error}. Training had succeeded and its adapter is kept in {kept}: when that is solved, publish it "
                f"with `adapterhub registry import {kept} --task {recipe.task}`"
            ) from error
    return BuildResult(published, metrics, measured_on, result)


def make_spec(recipe: Recipe, base: Base, labels: Sequence[str]) -> TaskSpec:
    """Return the rules of a recipe's task on a base; pooling is left for training to find out.

    Raises ConfigError where the recipe asks for a context, a chat template or a use that the base does not have.
    """
    if task_kind(recipe.kind) == "generation" and base.is_encoder:
        raise ConfigError(
            f"{recipe.path}: kind is {recipe.kind!r}, but base {base.name!r} is an encoder, which cannot write; "
            "use a decoder such as smollm2-135m-instruct"
        )
    if recipe.max_length is not None and recipe.max_length > base.context_length:
        raise ConfigError(
            f"{recipe.path}: max_length is {recipe.max_length}, but base {base.name!r} reads {base.context_length} "
            f"tokens; set it to {base.context_length} or less"
        )
    return TaskSpec(
        kind=task_kind(recipe.kind),
        base_fingerprint=base.fingerprint,
        max_length=recipe.max_length or min(base.context_length, DEFAULT_MAX_LENGTH),
        labels=tuple(labels),
        prompt=_prompt(recipe, base),
        pad_token=recipe.pad_token,
    )


def _prompt(recipe: Recipe, base: Base) -> PromptSpec:
    """Settle the prompt's style, and copy the base's chat template, so that it is the same wherever it is served."""
    style, asked = recipe.prompt.style, recipe.prompt
    if task_kind(recipe.kind) != "generation" or style == "plain":
        if style == "chat":
            raise ConfigError(
                f"{recipe.path}: prompt.style is 'chat', which only 'generation' and 'preference' have; leave it out"
            )
        return PromptSpec("plain", asked.system, asked.template)
    from adapterhub.base.load import load_tokenizer

    template = load_tokenizer(base, recipe.pad_token).chat_template
    if isinstance(template, dict):  # Several by name: for tools, for retrieval, and one for plain talk.
        template = template.get("default")
    if isinstance(template, str):
        return PromptSpec("chat", asked.system, asked.template, template)
    if style == "chat":
        raise ConfigError(
            f"{recipe.path}: prompt.style is 'chat', but base {base.name!r} has no chat template; set it to 'plain'"
        )
    return PromptSpec("plain", asked.system, asked.template)


def measure(
    recipe: Recipe,
    base: Base,
    registry: Registry,
    folder: Path,
    spec: TaskSpec,
    examples: Sequence[Example],
    outside: Sequence[Example] = (),
) -> dict[str, Metric]:
    """Return the metrics of a recipe's adapter folder, answering through the same runtime that serves it.

    `outside` are rows that have none of the task's labels.
    """
    from adapterhub.runtime.hub import AdapterHub

    with AdapterHub(base=base, registry=registry, precision=recipe.training.precision) as hub:
        target = hub.folder(folder)
        if recipe.kind == "preference":
            return preference_of(hub, target, examples)
        ask = partial(hub.answers, target)
        if spec.kind == "embedding":
            return retrieval_of(spec, examples, ask)
        answered = gold_answers(ask, examples, completion_limits(base, spec, examples))
        return score(spec, examples, answered, list(answers(ask, outside)) if outside else [])


def check_writable(place: Path) -> None:
    """Raise UsageError where nothing can be written at `place`, which need not exist yet; leaves nothing there."""
    try:
        nearest = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UsageError(
            f"the registry cannot be written to: {str(place)!r} ({error.strerror or error}); "
            "name another with --registry, or see to its permissions"
        ) from error


def keep(task: str, folder: Path, card: Card) -> Path:
    """Copy a trained adapter, with a card that makes it importable, to a place of its own; return that place.

    Raises AdapterHubError where the disk refuses that too.
    """
    digest = digest_folder(folder)
    kept = cache_root() / "unpublished" / f"{task}-{digest.removeprefix('sha256:')[:16]}"
    try:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        text = replace(card.public(), task=task, digest=digest).to_json()
        (kept / CARD_FILE).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise AdapterHubError(f"the trained adapter cannot be kept in {str(kept)!r} either ({error})") from error
    return kept


def make_card(
    recipe: Recipe,
    base: Base,
    splits: Splits,
    result: TrainingResult,
    metrics: Mapping[str, Metric],
    calibration: Mapping[str, Any],
) -> Card:
    """Return the card: where everything came from, and what came of it."""
    return Card(
        kind=result.spec.kind,
        base=base.to_card(),
        task=recipe.task,
        recipe=recipe.to_record(),
        data=splits.to_record(),
        labels=splits.labels,
        metrics={name: metric.to_record() for name, metric in metrics.items()},
        measured_on=splits.measured[0],
        training={**result.to_record(), "seed": recipe.training.seed},
        calibration=calibration,
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
