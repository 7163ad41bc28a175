"""A ladder climbed by adapters: one a rung, trained over one base in memory, then asked through the serving runtime."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.errors import AdapterHubError
from adapterhub.metrics import is_right
from adapterhub.registry.disk import remove, temporary_name
from adapterhub.registry.store import Registry

from .measure import completion_limits, gold_answers, gold_of, likeliest
from .prepare import Prepared
from .rungs import Outcomes, Rung, Watch

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.training.job import Progress, TrainingJob

# Adapters that learn at the same time: more would not be faster, and each takes memory.
_AT_ONCE = 4


def climb(
    prepared: Prepared, rungs: Mapping[str, Rung], folder: Path, registry: Registry, progress: Progress, watch: Watch
) -> None:
    """Have the outcome of each rung, by its key, in `folder`; trained adapters lie there until they are measured.

    Raises what training and answering raise; what was trained before is kept.
    """
    outcomes = Outcomes(folder)
    missing = {key: rung for key, rung in rungs.items() if outcomes.get(key) is None}
    left = {key: rung for key, rung in missing.items() if not _adapter(folder, key).is_dir()}
    if left:
        _train(prepared, left, folder, progress)
    if missing:
        _measure(prepared, missing, folder, registry, progress, watch)


def _train(prepared: Prepared, rungs: Mapping[str, Rung], folder: Path, progress: Progress) -> None:
    from adapterhub.training.train import Trainer

    trainer = Trainer(prepared.base, prepared.recipe.training.precision)
    each, left = list(rungs.items()), len(rungs)
    for start in range(0, len(each), _AT_ONCE):
        part = each[start : start + _AT_ONCE]
        progress.stage(f"{prepared.recipe.task}: {left} adapters to train, next on {part[-1][1].size} rows")
        outcomes = trainer.train([_job(prepared, rung) for _, rung in part], progress)
        for (key, _), outcome in zip(part, outcomes, strict=True):
            if isinstance(outcome, AdapterHubError):
                raise outcome
            temporary = folder / temporary_name()
            temporary.mkdir(parents=True)
            outcome.write(temporary)
            temporary.replace(_adapter(folder, key))
        left -= len(part)
    trainer.close()
    gc.collect()  # The training model goes before the one that answers comes.


def _job(prepared: Prepared, rung: Rung) -> TrainingJob:
    recipe = prepared.recipe
    settings = recipe.training.model_copy(update={"seed": rung.seed})
    recipe = recipe.model_copy(update={"task": f"{recipe.task}-{rung.size}-{rung.seed}", "training": settings})
    return replace(prepared, recipe=recipe).job([prepared.splits.train[row] for row in rung.rows])


def _measure(
    prepared: Prepared, rungs: Mapping[str, Rung], folder: Path, registry: Registry, progress: Progress, watch: Watch
) -> None:
    from adapterhub.runtime.hub import AdapterHub

    name, rows = prepared.splits.measured
    progress.stage(f"{prepared.recipe.task}: {len(rungs)} adapters on {len(rows)} {name} rows")
    with AdapterHub(base=prepared.base, registry=registry, precision=prepared.recipe.training.precision) as hub:
        for done, key in enumerate(rungs):
            watch("adapters measured", done, len(rungs))
            Outcomes(folder).put(key, _wrong(prepared, hub, _adapter(folder, key)))
            remove(_adapter(folder, key))


def _wrong(prepared: Prepared, hub: AdapterHub, adapter: Path) -> list[bool]:
    """Return which measured rows an adapter gets wrong."""
    target, rows = hub.folder(adapter), prepared.splits.measured[1]
    spec = target.spec
    assert spec is not None, "an adapter has rules"
    assert spec.kind != "embedding", "it has no answers that are right or wrong"
    answered = dict(gold_answers(partial(hub.answers, target), rows, completion_limits(hub.base, spec, rows)))
    found = []
    for place, example in enumerate(rows):
        answer = answered[place]
        told = likeliest(answer)[0] if spec.kind == "classification" else answer.answer
        found.append(not is_right(spec.kind, gold_of(example, spec.kind), told))
    return found


def _adapter(folder: Path, key: str) -> Path:
    return folder / f"adapter-{key}"
