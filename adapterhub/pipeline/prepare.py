"""A recipe got ready to be trained: its rows read, its base opened, its rules settled, everything wrong found first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.base.catalog import refuse_base_name
from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.data.output import Output
from adapterhub.data.task import PromptSpec, TaskSpec, task_kind
from adapterhub.errors import BaseMismatch, ConfigError, InvalidRequest, UsageError
from adapterhub.recipe import Recipe
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .calibrate import check_outside
from .splits import Splits, read_splits

if TYPE_CHECKING:
    from adapterhub.training.job import Progress, TrainingJob

# Unless the recipe says otherwise: bases advertise contexts far longer than a task's texts, and memory follows length.
DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True)
class Prepared:
    """What training, measuring and publishing need of a recipe.

    `init` is the version to begin at, if any; `parents` are digests of other versions that this one comes from.
    """

    recipe: Recipe
    splits: Splits
    base: Base
    spec: TaskSpec
    init: Version | None
    parents: tuple[str, ...] = ()

    def job(self, train: Sequence[Example] | None = None) -> TrainingJob:
        """Return what training is asked for; `train` are other rows to train on than all."""
        from adapterhub.training.job import TrainingJob

        splits, init = self.splits, None if self.init is None else self.init.path
        rows = splits.train if train is None else train
        return TrainingJob(self.recipe, self.base, self.spec, rows, splits.validation, splits.test, init)


def prepare(recipe: Recipe, registry: Registry, progress: Progress, splits: Splits | None = None) -> Prepared:
    """Read, open and check everything that a recipe names; `splits` are its rows where they were read before.

    Raises ConfigError, DataError, FileMissing, BaseNotFound, BaseError, BaseMismatch (the task is bound to another
    base, or `init` is), RefNotFound, and UsageError where nothing can be written to the registry.
    """
    base = open_base(recipe.base_name, progress=_Stages(progress))
    refuse_base_name(recipe.task)
    registry.check_base(recipe.task, base.fingerprint)
    check_writable(registry.root / recipe.task)
    init = None if recipe.init is None else _init(recipe.init, base, registry)
    if splits is None:
        # After what is quick to check: where a recipe makes its labels, many voters are asked here.
        progress.stage(f"{recipe.task}: reading {recipe.data.train}")
        splits = read_splits(recipe, registry, progress.stage)
    spec = make_spec(recipe, base, splits.labels)
    check_outside(base, spec, splits)
    progress.stage(
        f"{recipe.task}: {len(splits.train)} rows to train on, {len(splits.validation)} to validate on"
        f"{f' ({splits.held_out})' if splits.held_out else ''}; base {base.name}"
    )
    return Prepared(recipe, splits, base, spec, init)


def _init(ref: str, base: Base, registry: Registry) -> Version:
    """Return the version that a recipe begins at."""
    version = registry.resolve(ref)
    if version.base_fingerprint != base.fingerprint:
        raise BaseMismatch(
            f"init: {ref!r} was trained on {version.base!r} ({version.base_fingerprint[:19]}…), but this recipe's base "
            f"is {base.name!r} ({base.fingerprint[:19]}…); begin at a version of the same base, or leave init out"
        )
    return version


def make_spec(recipe: Recipe, base: Base, labels: Sequence[str]) -> TaskSpec:
    """Return the rules of a recipe's task on a base; pooling is left for training to find out.

    Raises ConfigError where the recipe asks for a context, a chat template or a use that the base does not have, or for
    an output that no answer can have.
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
        output=make_output(recipe),
    )


def make_output(recipe: Recipe) -> Output | None:
    """Return the rule for a recipe's answers, None for any text; raises ConfigError where it cannot be followed."""
    asked = recipe.output
    if asked is None:
        return None
    from adapterhub.runtime.grammar import check_output

    try:
        if asked.json_schema is not None:
            output = Output.json(json.loads(asked.json_schema))
        elif asked.choices is not None:
            output = Output.choices(asked.choices)
        else:
            output = Output.regex(asked.regex or "")
        check_output(output)
    except InvalidRequest as error:
        raise ConfigError(f"{recipe.path}: output: {error}") from error
    return output


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


class _Stages:
    """Tells training's progress what fetching a base tells, one line a step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = ""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        if step != self._last:
            self._progress.stage(step)
            self._last = step
