"""What more data would bring to a recipe's task, from trainings on nested parts of the data there is.

Heads on stored features climb the ladder in seconds, adapters in minutes or hours. Whatever has been trained is kept
by the hash of recipe, rows and seed, so that a forecast goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from adapterhub.base.source import Base, open_base
from adapterhub.curation.coverage import Coverage, cover
from adapterhub.curation.forecast import Forecast, Need
from adapterhub.curation.learning_curve import LEAST_SIZES, REACH
from adapterhub.data.example import Example
from adapterhub.data.prompt import input_text
from adapterhub.errors import DataError, UsageError
from adapterhub.folders import cache_root
from adapterhub.recipe import Recipe, load_recipe
from adapterhub.registry.store import Registry

from .climb import climb
from .prepare import prepare
from .rungs import Outcomes, Rung, Watch, check_sizes, ladder_sizes, rungs_of
from .runs import held, run_folder
from .splits import Splits, read_splits

if TYPE_CHECKING:
    import numpy as np

    from adapterhub.training.job import Progress

By = Literal["heads", "adapters"]
SEEDS: dict[By, int] = {"heads": 5, "adapters": 3}
# Adapters are trained unless one says otherwise, as long as that is no more rows than this, epochs counted: some ten
# minutes on two cores for a base of 135 million parameters.
MOST_TRAINED = 20_000
KINDS = ("classification", "multilabel", "generation")
_CLASS_DRAWS = 200


@dataclass(frozen=True)
class Plan:
    """How a ladder is climbed: by what (None: see `choose_by`), its sizes (None: halves of all rows), how many seeds.

    `base` is whose features heads read, None the default one; adapters have the recipe's. `target` is an accuracy.
    """

    by: str | None = None
    sizes: tuple[int, ...] | None = None
    seeds: int | None = None
    target: float | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be climbed by."""
        if self.by not in (None, *get_args(By)):
            raise UsageError(f"--by is {self.by!r}; it may be {' or '.join(get_args(By))}")


@dataclass(frozen=True)
class ClassForecast:
    """One label's forecast over the rows that measure it; `train` is how many rows it has now."""

    label: str
    train: int
    measured: int
    forecast: Forecast

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record: the error now, and at two and four times the data."""
        most = self.forecast.ladder.sizes[-1]
        points = [self.forecast.rungs()[-1], *(self.forecast.at(times * most) for times in (2, REACH))]
        found = {"label": self.label, "train": self.train, "measured": self.measured}
        return {**found, "points": [each.to_record() for each in points]}


@dataclass(frozen=True)
class TaskForecast:
    """What more data would bring to a task.

    `classes` are worst first: those that most wrong answers belong to; empty where rows have no single label. `folder`
    is where outcomes are kept.
    """

    task: str
    by: By
    base: str
    measured_on: str
    measured: int
    seeds: int
    forecast: Forecast
    need: Need | None
    classes: tuple[ClassForecast, ...]
    coverage: Coverage | None
    folder: Path

    def to_record(self) -> dict[str, Any]:
        """Return what scripts read; the keys are pinned."""
        return {
            "task": self.task,
            "by": self.by,
            "base": self.base,
            "measured_on": self.measured_on,
            "measured": self.measured,
            "seeds": self.seeds,
            **self.forecast.to_record(),
            "need": None if self.need is None else self.need.to_record(),
            "classes": [each.to_record() for each in self.classes],
            "coverage": None if self.coverage is None else self.coverage.to_record(),
        }


def forecast(
    path: Path,
    overrides: Sequence[str],
    plan: Plan,
    registry: Registry,
    progress: Progress,
    watch: Watch = lambda _, __, ___: None,
) -> TaskForecast:
    """Climb the ladder of the recipe in `path` and say what more data would bring; nothing is published.

    Measured on the test rows, or on validation where there are none. Raises UsageError for kinds of task whose answers
    are neither right nor wrong and for sizes that cannot be, DataError for too few rows, and what reading and training
    raise.
    """
    recipe = load_recipe(path, overrides)
    if recipe.kind not in KINDS:
        raise UsageError(f"{path}: kind is {recipe.kind!r}, whose answers are not right or wrong; no error to forecast")
    splits = read_splits(recipe, registry, progress.stage)
    sizes = _sizes(recipe, splits, plan)
    by = choose_by(recipe, sizes, plan)
    seeds = range(recipe.training.seed, recipe.training.seed + (plan.seeds or SEEDS[by]))
    rungs = rungs_of(splits.train, sizes, seeds)
    if by == "adapters":
        prepared = prepare(recipe, registry, progress, splits)
        base, folder = prepared.base, run_folder([prepared], cache_root() / "forecasts")
        keys = [rung.key(splits.train, rung.seed) for rung in rungs]
        with held(folder):
            climb(prepared, dict(zip(keys, rungs, strict=True)), folder, registry, progress, watch)
    else:
        base = _open(plan.base, progress)
        folder = _heads_folder(recipe, splits, base)
        keys = [rung.key(splits.train, None) for rung in rungs]
        _climb_by_heads(recipe, splits, base, dict(zip(keys, rungs, strict=True)), Outcomes(folder), progress, watch)
    found = Forecast.of(Outcomes(folder).ladder(sizes, keys))
    classes, coverage = _by_label(splits, rungs, found, plan.target) if recipe.kind == "classification" else ((), None)
    need = None if plan.target is None else found.need(round(1 - plan.target, 12))
    name, rows = splits.measured
    return TaskForecast(recipe.task, by, base.name, name, len(rows), len(seeds), found, need, classes, coverage, folder)


def choose_by(recipe: Recipe, sizes: Sequence[int], plan: Plan) -> By:
    """Return what climbs: as asked, else adapters, but heads where adapters would take too long and heads can do it."""
    if plan.by == "heads" and recipe.kind != "classification":
        raise UsageError(f"{recipe.path}: heads tell labels apart, and kind is {recipe.kind!r}; use --by adapters")
    if plan.by == "heads":
        return "heads"
    if plan.by == "adapters" or recipe.kind != "classification":
        return "adapters"
    return "adapters" if trained_rows(recipe, sizes, plan.seeds or SEEDS["adapters"]) <= MOST_TRAINED else "heads"


def trained_rows(recipe: Recipe, sizes: Sequence[int], seeds: int) -> float:
    """Return how many rows all adapters of a ladder learn from, each counted as often as it is seen."""
    settings = recipe.training
    if settings.epochs is None:
        return float((settings.steps or 0) * settings.batch_size * len(sizes) * seeds)
    return settings.epochs * sum(sizes) * seeds


def _sizes(recipe: Recipe, splits: Splits, plan: Plan) -> tuple[int, ...]:
    rows = len(splits.train)
    if plan.sizes is not None:
        return check_sizes(plan.sizes, rows)
    sizes = ladder_sizes(rows, len(splits.labels))
    if len(sizes) < LEAST_SIZES:
        raise DataError(
            f"{recipe.data.train}: {rows} rows of {len(splits.labels)} labels are too few to halve twice; "
            "name smaller sizes with --sizes, or label more rows"
        )
    return sizes


def _open(name: str | None, progress: Progress) -> Base:
    from adapterhub.base.feature_store import DEFAULT_BASE

    return open_base(DEFAULT_BASE if name is None else name, progress=lambda step, *_: progress.stage(step))


def _heads_folder(recipe: Recipe, splits: Splits, base: Base) -> Path:
    """Return where what heads said is kept: the same for the same rows, labels, template and base."""
    said = [base.fingerprint, splits.to_record(), list(splits.labels), recipe.prompt.template, splits.measured[0]]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return cache_root() / "forecasts" / f"{recipe.task}-heads-{key}"


def _climb_by_heads(
    recipe: Recipe,
    splits: Splits,
    base: Base,
    rungs: dict[str, Rung],
    outcomes: Outcomes,
    progress: Progress,
    watch: Watch,
) -> None:
    """Have the outcome of each rung by a head on features of what the base reads of a row."""
    import numpy as np

    from adapterhub.base.feature_store import stored_features
    from adapterhub.curation.stand_in import StandIn

    missing = {key: rung for key, rung in rungs.items() if outcomes.get(key) is None}
    if not missing:
        return
    rows = (splits.train, splits.measured[1])
    total = sum(map(len, rows))
    progress.stage(f"{recipe.task}: {total} rows through {base.name}, then {len(missing)} heads")
    texts = [input_text(each, recipe.kind, recipe.prompt.template) for split in rows for each in split]
    features = stored_features(base, texts, progress=lambda done: watch("rows", done, total))
    train, test = features[: len(rows[0])], features[len(rows[0]) :]
    heads = StandIn.of(train, _indices(splits.train, splits), test, _indices(splits.measured[1], splits))
    for done, (key, rung) in enumerate(missing.items()):
        watch("heads", done, len(missing))
        outcomes.put(key, heads.wrong(np.array(rung.rows)))
    watch("heads", len(missing), len(missing))


def _indices(examples: Sequence[Example], splits: Splits) -> np.ndarray:
    """Return each row's label as an index."""
    import numpy as np

    places = {label: place for place, label in enumerate(splits.labels)}
    return np.array([places[str(each.label)] for each in examples])


def _by_label(
    splits: Splits, rungs: Sequence[Rung], found: Forecast, target: float | None
) -> tuple[tuple[ClassForecast, ...], Coverage]:
    """Return each measured label's forecast, and the coverage of all."""
    import numpy as np

    labels, gold, ladder = _indices(splits.train, splits), _indices(splits.measured[1], splits), found.ladder
    have = np.bincount(labels, minlength=len(splits.labels))
    counts = np.array([np.bincount(labels[list(rung.rows)], minlength=len(splits.labels)) for rung in rungs], float)
    counts = counts.reshape(len(ladder.sizes), -1, len(splits.labels)).mean(axis=1)
    weight = {
        place: float(ladder.rows(gold == place).wrong[-1].mean(axis=0).sum()) for place in np.unique(gold).tolist()
    }
    worst = sorted(weight, key=lambda place: -weight[place])
    classes = tuple(
        ClassForecast(
            splits.labels[place],
            int(have[place]),
            int((gold == place).sum()),
            Forecast.of(ladder.rows(gold == place), _CLASS_DRAWS),
        )
        for place in worst
    )
    return classes, cover(splits.labels, counts, gold, ladder, target, have=have)
