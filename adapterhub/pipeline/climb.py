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
from adapterhub.registry.store import Registry

from .measure import completion_limits, gold_answers, gold_of, likeliest
from .prepare import Prepared
from .rungs import Outcomes, Rung, Watch
from .trained import TrainedRuns

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.training.job import Progress, TrainingJob

# Adapters that learn at the same time: more would not be faster, and each takes memory.
_AT_ONCE = 4


def climb(
    prepared: Prepared, rungs: Mapping[str, Rung], folder: Path, registry: Registry, progress: Progress, watch: Watch
) -> None:
    """Have the outcome of each rung, by its key, in `folder`.

    Adapters that a sweep, or this, has trained before are not trained again. Raises what training and answering raise;
    what was trained before is kept.
    """
    outcomes = Outcomes(folder)
    missing = {key: rung for key, rung in rungs.items() if outcomes.get(key) is None}
    if missing:
        adapters = _trained(prepared, missing, progress)
        _measure(prepared, adapters, folder, registry, progress, watch)


def _trained(prepared: Prepared, rungs: Mapping[str, Rung], progress: Progress) -> dict[str, Path]:
    """Return each rung's adapter, trained where it is not kept."""
    from adapterhub.training.train import Trainer

    kept = TrainedRuns()
    jobs = {key: _job(prepared, rung) for key, rung in rungs.items()}
    found = {key: run.folder for key, job in jobs.items() if (run := kept.get(job)) is not None}
    left = [key for key in jobs if key not in found]
    if not left:
        return found
    trainer = Trainer(prepared.base, prepared.recipe.training.precision)
    for start in range(0, len(left), _AT_ONCE):
        part = left[start : start + _AT_ONCE]
        progress.stage(
            f"{prepared.recipe.task}: {len(left) - start} adapters to train, next on {rungs[part[-1]].size} rows"
        )
        for key, outcome in zip(part, trainer.train([jobs[key] for key in part], progress), strict=True):
            if isinstance(outcome, AdapterHubError):
                raise outcome
            found[key] = kept.put(jobs[key], outcome).folder
    trainer.close()
    kept.make_room(found.values())
    gc.collect()  # The training model goes before the one that answers comes.
    return found


def _job(prepared: Prepared, rung: Rung) -> TrainingJob:
    recipe = prepared.recipe
    settings = recipe.training.model_copy(update={"seed": rung.seed})
    recipe = recipe.model_copy(update={"task": f"{recipe.task}-{rung.size}-{rung.seed}", "training": settings})
    return replace(prepared, recipe=recipe).job([prepared.splits.train[row] for row in rung.rows])


def _measure(
    prepared: Prepared, adapters: Mapping[str, Path], folder: Path, registry: Registry, progress: Progress, watch: Watch
) -> None:
    from adapterhub.runtime.hub import AdapterHub

    name, rows = prepared.splits.measured
    progress.stage(f"{prepared.recipe.task}: {len(adapters)} adapters on {len(rows)} {name} rows")
    with AdapterHub(base=prepared.base, registry=registry, precision=prepared.recipe.training.precision) as hub:
        for done, (key, adapter) in enumerate(adapters.items()):
            watch("adapters measured", done, len(adapters))
            Outcomes(folder).put(key, _wrong(prepared, hub, adapter))


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
