"""From recipes to published versions: prepare, train, calibrate, measure, publish."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.data.example import Example
from adapterhub.data.task import TaskSpec
from adapterhub.errors import AdapterHubError
from adapterhub.folders import cache_root
from adapterhub.labeling.stale import remember_places
from adapterhub.metrics import Metric
from adapterhub.recipe import Recipe
from adapterhub.registry.bundle import CARD_FILE, PROBES_FILE, ROWS_FILE, digest_folder
from adapterhub.registry.card import Card
from adapterhub.registry.provenance import git_commit, package_versions
from adapterhub.registry.rows import rows_text
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published

from .calibrate import Calibrated, calibrate
from .measure import answers, completion_limits, gold_answers, score
from .pairs import preference_of, retrieval_of
from .prepare import Prepared, prepare
from .probes import choose_probes, take_probes
from .runs import held, run_folder
from .splits import Splits

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.training.job import Progress, TrainingResult
    from adapterhub.training.train import Trained


@dataclass(frozen=True)
class BuildResult:
    """A published version, how good it is, on which split that was measured, and how its training went.

    `journal` is the folder with the log of the training and its plot.
    """

    published: Published
    metrics: Mapping[str, Metric]
    measured_on: str
    training: TrainingResult
    journal: Path | None = None

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
            "journal": None if self.journal is None else str(self.journal),
        }


def build(recipe: Recipe, registry: Registry, progress: Progress) -> BuildResult:
    """Make the adapter of `recipe` and publish it; nothing is published unless everything before succeeded.

    An adapter that cannot be published although it was trained is kept, and the message says where. Raises what the
    stages raise: ConfigError, DataError, BaseNotFound, BaseError, BaseMismatch, TrainingError.
    """
    (outcome,) = build_all([recipe], registry, progress)
    if isinstance(outcome, AdapterHubError):
        raise outcome
    return outcome


def build_all(
    recipes: Sequence[Recipe],
    registry: Registry,
    progress: Progress,
    *,
    resume: bool = False,
    tracker: str | None = None,
    tell: Callable[[BuildResult], None] = lambda _: None,
    parents: Mapping[str, str] | None = None,
    teach: Callable[[Splits], Splits] = lambda splits: splits,
) -> list[BuildResult | AdapterHubError]:
    """Make the adapters of `recipes`, those of one base at the same time, and return what came of each, in order.

    One that fails does not stop the others. With `resume` a training that was interrupted goes on from its last
    checkpoint. `tracker` is the name of a tracker that accelerate knows. `tell` hears of each version as soon as it is
    published. `parents` has, by task, the digest of a version that the new one replaces; `teach` may change the rows
    that were read. Of several processes (accelerate launch) the first one alone measures and publishes; the others
    return nothing.
    """
    found: dict[int, BuildResult | AdapterHubError] = {}
    ready: dict[int, Prepared] = {}
    for i, recipe in enumerate(recipes):
        try:
            parent = (parents or {}).get(recipe.task)
            read = prepare(recipe, registry, progress)
            ready[i] = replace(read, splits=teach(read.splits), parents=() if parent is None else (parent,))
        except AdapterHubError as error:
            found[i] = error
    main = True
    for group in _groups(ready):
        try:
            outcomes = _make([ready[i] for i in group], registry, progress, resume=resume, tracker=tracker, tell=tell)
        except AdapterHubError as error:
            outcomes = [error] * len(group)
        main = outcomes is not None
        found |= dict(zip(group, outcomes or [], strict=False))
    return [found[i] for i in range(len(recipes))] if main else []


def _groups(ready: Mapping[int, Prepared]) -> list[list[int]]:
    """Return which jobs train at the same time: those of one base and precision, each task once."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    seen: dict[str, int] = {}
    for i, each in ready.items():
        turn = seen[each.recipe.task] = seen.get(each.recipe.task, -1) + 1
        groups.setdefault((each.base.fingerprint, each.recipe.training.precision, turn), []).append(i)
    return list(groups.values())


def _make(
    jobs: Sequence[Prepared],
    registry: Registry,
    progress: Progress,
    *,
    resume: bool,
    tracker: str | None,
    tell: Callable[[BuildResult], None],
) -> list[BuildResult | AdapterHubError] | None:
    """Train jobs of one base, measure and publish each adapter; return None in other processes than the first."""
    from adapterhub.training.train import Trainer

    base, precision = jobs[0].base, jobs[0].recipe.training.precision
    folder = run_folder(jobs)
    trainer = Trainer(base, precision, tracker=tracker, folder=folder)
    main = bool(trainer.accelerator.is_main_process)
    with held(folder) if main else nullcontext():
        outcomes = trainer.train([each.job() for each in jobs], progress, folder, resume=resume)
        trainer.close()
        gc.collect()  # The training model goes before the one that answers comes.
        if not main:
            return None
        found = _publish_all(jobs, outcomes, registry, progress, folder, tell)
        if not any(isinstance(each, AdapterHubError) for each in found):
            trainer.forget(folder)
    return found


def _publish_all(
    jobs: Sequence[Prepared],
    outcomes: Sequence[Trained | AdapterHubError],
    registry: Registry,
    progress: Progress,
    folder: Path,
    tell: Callable[[BuildResult], None],
) -> list[BuildResult | AdapterHubError]:
    """Publish what was trained; what cannot be published stands in its place as the error."""
    if all(isinstance(each, AdapterHubError) for each in outcomes):
        return [each for each in outcomes if isinstance(each, AdapterHubError)]
    from adapterhub.runtime.hub import AdapterHub

    found: list[BuildResult | AdapterHubError] = []
    with AdapterHub(base=jobs[0].base, registry=registry, precision=jobs[0].recipe.training.precision) as hub:
        for prepared, trained in zip(jobs, outcomes, strict=True):
            if isinstance(trained, AdapterHubError):
                found.append(trained)
                continue
            try:
                result = _publish(prepared, trained, hub, registry, progress, folder / prepared.recipe.task)
            except AdapterHubError as error:
                found.append(error)
            else:
                tell(result)
                found.append(result)
    return found


def _publish(
    prepared: Prepared, trained: Trained, hub: AdapterHub, registry: Registry, progress: Progress, journal: Path
) -> BuildResult:
    recipe, splits, result = prepared.recipe, prepared.splits, trained.result
    measured_on, examples = splits.measured
    calibrated = Calibrated(result.spec)
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as scratch:
        folder = Path(scratch) / "adapter"
        trained.write(folder)
        try:
            calibrated = calibrate(recipe, hub, folder, result.spec, splits)
            result = replace(result, spec=calibrated.spec)
            if calibrated.record:
                progress.stage(f"{recipe.task}: {calibrated}")
            progress.stage(f"{recipe.task}: final metrics on {len(examples)} {measured_on} rows")
            metrics = measure(recipe, hub, folder, result.spec, examples, splits.measured_outside)
            card = make_card(prepared, result, metrics, calibrated.record)
            published = registry.publish(recipe.task, folder, card, _attached(prepared, hub, folder, examples))
            remember_places(recipe.task, published.digest, splits.labelling)
        except AdapterHubError as error:
            kept = keep(recipe.task, folder, make_card(prepared, result, {}, calibrated.record))
            raise type(error)(
                f"{error}. Training had succeeded and its adapter is kept in {kept}: when that is solved, publish it "
                f"with `adapterhub registry import {kept} --task {recipe.task}`"
            ) from error
    return BuildResult(published, metrics, measured_on, result, journal)


def _attached(prepared: Prepared, hub: AdapterHub, folder: Path, examples: Sequence[Example]) -> dict[str, str]:
    """Return what the version carries beside its adapter: probes, and which rows made it, as hashes."""
    splits, count = prepared.splits, prepared.recipe.probes
    kind, rows = prepared.recipe.kind, {"train": splits.train, "validation": splits.validation, "test": splits.test}
    found = {ROWS_FILE: rows_text(rows, kind)}
    if count:
        found[PROBES_FILE] = take_probes(hub, hub.folder(folder), choose_probes(examples, count), kind)
    return found


def measure(
    recipe: Recipe,
    hub: AdapterHub,
    folder: Path,
    spec: TaskSpec,
    examples: Sequence[Example],
    outside: Sequence[Example] = (),
) -> dict[str, Metric]:
    """Return the metrics of a recipe's adapter folder, answering through the same runtime that serves it.

    `outside` are rows that have none of the task's labels.
    """
    target = hub.folder(folder)
    if recipe.kind == "preference":
        return preference_of(hub, target, examples)
    ask = partial(hub.answers, target)
    if spec.kind == "embedding":
        return retrieval_of(spec, examples, ask)
    answered = gold_answers(ask, examples, completion_limits(hub.base, spec, examples))
    return score(spec, examples, answered, list(answers(ask, outside)) if outside else [])


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
    prepared: Prepared, result: TrainingResult, metrics: Mapping[str, Metric], calibration: Mapping[str, Any]
) -> Card:
    """Return the card: where everything came from, and what came of it."""
    recipe, splits = prepared.recipe, prepared.splits
    return Card(
        kind=result.spec.kind,
        base=prepared.base.to_card(),
        task=recipe.task,
        recipe=recipe.to_record(),
        data=splits.to_record(),
        labels=splits.labels,
        metrics={name: metric.to_record() for name, metric in metrics.items()},
        measured_on=splits.measured[0],
        training={
            **result.to_record(),
            "seed": recipe.training.seed,
            **({} if prepared.init is None else {"init": prepared.init.digest}),
        },
        calibration=calibration,
        labelling=splits.labelling,
        curation=splits.curation,
        packages=package_versions(),
        git_commit=git_commit(recipe.path.parent),
        description=recipe.description,
        license=recipe.license,
        language=recipe.language,
        datasets=recipe.datasets,
        parents=(*prepared.parents, *(() if prepared.init is None else (prepared.init.digest,))),
    )
