"""Start small, then scale: many settings of a recipe tried on little data, the best of them on more, the last on all.

Successive halving (Jamieson and Talwalkar 2016): on each budget of training rows the settings that are left train side
by side over one base in memory, and a part of them goes on to the next. Optuna proposes the settings. What has been
run is kept, so that an interrupted sweep, or a wider one, runs only what is new.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.curation.nested import nested_order
from adapterhub.data.example import Example
from adapterhub.errors import AdapterHubError, ConfigError, UsageError
from adapterhub.folders import cache_root
from adapterhub.metrics import rank_correlation
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry

from .prepare import Prepared, prepare
from .runs import held, run_folder
from .space import Settings, Space
from .trained import KeptRun, TrainedRuns

if TYPE_CHECKING:
    from adapterhub.training.job import Progress, TrainingJob
    from adapterhub.training.train import Trainer

# Settings that train at the same time: more would not be faster, and each takes memory for optimiser and activations.
_AT_ONCE = 4
RESULTS, PLOT = "sweep.jsonl", "sweep.png"


@dataclass(frozen=True)
class Plan:
    """How a sweep goes: the space, how many settings (None: all of a grid), budgets as fractions of the rows, rising.

    After each budget the best `keep` of the settings go on, at least two to the last; `seed` draws settings and rows.
    """

    space: Space
    trials: int | None
    budgets: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)
    keep: float = 1 / 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for budgets or a part to keep that make no sense."""
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or not self.budgets[0] > 0:
            raise UsageError(f"--budgets {self.budgets}: expected rising fractions of the rows, such as 0.1,0.3,1")
        if self.budgets[-1] > 1:
            raise UsageError(f"--budgets: {self.budgets[-1]} is more than all rows, which is 1")
        if not 0 < self.keep < 1:
            raise UsageError(f"--keep {self.keep}: expected a part between 0 and 1")


@dataclass
class Trial:
    """One setting, and what validation said on each budget it ran on, by the number of rows. Higher is better."""

    number: int
    settings: Settings
    values: dict[int, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def best_known(self) -> tuple[int, float]:
        """The largest budget it ran on, and its value there."""
        rows = max(self.values, default=0)
        return rows, self.values.get(rows, -math.inf)


@dataclass(frozen=True)
class Ranking:
    """How the order on so many rows held on all: Spearman's correlation over `compared` settings that ran on both.

    `correlation` is None for fewer than three settings.
    """

    rows: int
    correlation: float | None
    compared: int


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep: trials from best to worst, the budgets in rows, and where the results are kept.

    `rankings` are of each budget but the largest, the smallest first.
    """

    task: str
    metric: str
    rows: tuple[int, ...]
    trials: tuple[Trial, ...]
    rankings: tuple[Ranking, ...]
    folder: Path

    def to_record(self) -> dict[str, Any]:
        """Return what scripts read; the keys are pinned."""
        return {
            "task": self.task,
            "metric": self.metric,
            "rows": list(self.rows),
            "trials": [
                {"settings": dict(t.settings), "values": {str(n): v for n, v in t.values.items()}, "error": t.error}
                for t in self.trials
            ],
            "best": dict(self.trials[0].settings),
            "rank_correlation": self.rankings[0].correlation if self.rankings else None,
            "compared": self.rankings[0].compared if self.rankings else 0,
            "rankings": [asdict(ranking) for ranking in self.rankings],
            "folder": str(self.folder),
        }


def sweep(path: Path, overrides: Sequence[str], plan: Plan, registry: Registry, progress: Progress) -> Sweep:
    """Run a sweep over the recipe in `path`; nothing is published.

    Raises ConfigError for settings that no recipe allows, UsageError where Optuna is not installed, and what preparing
    and training raise where no setting could be trained.
    """
    from adapterhub.training.train import Trainer

    prepared = prepare(load_recipe(path, overrides), registry, progress)
    if not prepared.splits.validation:
        raise ConfigError(f"{path}: a sweep compares settings on validation rows, and there are none")
    study, trials = _propose(plan)
    for trial in trials:  # a setting that no recipe takes is found before the first hour
        load_recipe(path, [*overrides, *as_overrides(trial.settings)])
    order = _nested(prepared.splits.train, plan.seed)
    rows = tuple(dict.fromkeys(max(2, round(part * len(order))) for part in plan.budgets))
    folder = run_folder([prepared], cache_root() / "sweeps")
    trainer = Trainer(prepared.base, prepared.recipe.training.precision)
    runner = _Runner(path, overrides, prepared, order, trainer, folder, progress)
    with held(folder):
        alive = list(trials)
        for index, count in enumerate(rows):
            progress.stage(f"{prepared.recipe.task}: {len(alive)} settings on {count} rows")
            runner.run(alive, count)
            alive = [trial for trial in alive if count in trial.values]
            if not alive:
                raise AdapterHubError(f"no setting could be trained; the first error: {trials[0].error}")
            alive.sort(key=lambda trial: (-trial.values[count], trial.number))
            if index + 1 < len(rows):
                alive = alive[: max(2, math.ceil(plan.keep * len(alive)))]
        trainer.close()
        _tell(study, trials)
        found = _result(prepared, trials, rows, runner.metric, folder)
        draw(found, folder / PLOT)
    return found


class _Runner:
    """Trains settings on a number of rows, and remembers what it has seen."""

    def __init__(
        self,
        path: Path,
        overrides: Sequence[str],
        prepared: Prepared,
        order: Sequence[Example],
        trainer: Trainer,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._path, self._overrides, self._prepared, self._order = path, overrides, prepared, order
        self._trainer, self._file, self._progress = trainer, folder / RESULTS, progress
        self._kept = TrainedRuns()
        self.metric = "loss"
        self._seen: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.is_file():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the last line of a killed sweep
                    break
                self._seen[record["key"]] = record

    def run(self, trials: Sequence[Trial], rows: int) -> None:
        """Have each trial's value on so many rows; what fails has its error instead."""
        new = []
        for trial in trials:
            record = self._seen.get(self._key(trial.settings, rows))
            if record is None:
                new.append(trial)
            else:
                self._note(trial, rows, record)
        for start in range(0, len(new), _AT_ONCE):
            self._train(new[start : start + _AT_ONCE], rows)

    def _train(self, trials: Sequence[Trial], rows: int) -> None:
        jobs = []
        for trial in trials:
            recipe = load_recipe(self._path, [*self._overrides, *as_overrides(trial.settings)])
            recipe = recipe.model_copy(update={"task": f"{recipe.task}-{trial.number}"})
            jobs.append(replace(self._prepared, recipe=recipe).job(self._order[:rows]))
        for trial, outcome in zip(trials, self._outcomes(jobs), strict=True):
            record: dict[str, Any] = {"key": self._key(trial.settings, rows), "rows": rows, "settings": trial.settings}
            if isinstance(outcome, AdapterHubError):
                record["error"] = str(outcome)
            else:
                assert outcome.best is not None, "there are validation rows"
                record |= {"evaluation": asdict(outcome.best), "seconds": outcome.seconds}
            with self._file.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(record) + "\n")
            self._note(trial, rows, record)

    def _outcomes(self, jobs: Sequence[TrainingJob]) -> list[KeptRun | AdapterHubError]:
        """Return what came of each job, trained where it is not kept: a forecast may have trained the same."""
        found: dict[int, KeptRun | AdapterHubError] = {}
        for place, job in enumerate(jobs):
            if (run := self._kept.get(job)) is not None:
                found[place] = run
        left = [place for place in range(len(jobs)) if place not in found]
        outcomes = self._trainer.train([jobs[place] for place in left], self._progress) if left else []
        for place, outcome in zip(left, outcomes, strict=True):
            found[place] = outcome if isinstance(outcome, AdapterHubError) else self._kept.put(jobs[place], outcome)
        self._kept.make_room()
        return [found[place] for place in range(len(jobs))]

    def _note(self, trial: Trial, rows: int, record: dict[str, Any]) -> None:
        if "error" in record:
            trial.error = record["error"]
            return
        evaluation = record["evaluation"]
        self.metric = evaluation["metric"]
        trial.values[rows] = -evaluation["value"] if self.metric == "loss" else evaluation["value"]

    def _key(self, settings: Settings, rows: int) -> str:
        text = json.dumps([sorted(settings.items()), rows, [each.id for each in self._order[:rows]]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _propose(plan: Plan) -> tuple[Any, list[Trial]]:
    """Return Optuna's study, and the settings it proposes; all at once, since they train side by side."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError("sweeps need Optuna: pip install 'adapterhub[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=plan.seed))
    space = plan.space
    if space.size is None:
        if plan.trials is None:
            raise UsageError("a space with a range has no end; say with --trials how many settings to try")
        count = plan.trials
    else:
        grid = space.places()
        count = len(grid) if plan.trials is None else min(plan.trials, len(grid))
        for places in grid if count == len(grid) else random.Random(plan.seed).sample(grid, count):  # noqa: S311
            study.enqueue_trial(places)
    trials: list[Trial] = []
    seen: set[str] = set()
    for _ in range(20 * count):  # a range of few whole numbers may be drawn to its end before that
        if len(trials) == count:
            break
        asked = study.ask()
        settings = space.draw(asked)
        if (text := json.dumps(settings, sort_keys=True)) in seen:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
            continue
        seen.add(text)
        trials.append(Trial(asked.number, settings))
    return study, trials


def _tell(study: Any, trials: Sequence[Trial]) -> None:
    """Tell Optuna what came of the trials, so that its study says the same as ours."""
    import optuna

    most = max((max(trial.values, default=0) for trial in trials), default=0)
    for trial in trials:
        if most in trial.values:
            study.tell(trial.number, trial.values[most])
        else:
            state = optuna.trial.TrialState.FAIL if trial.error else optuna.trial.TrialState.PRUNED
            study.tell(trial.number, state=state)


def _result(prepared: Prepared, trials: Sequence[Trial], rows: tuple[int, ...], metric: str, folder: Path) -> Sweep:
    rankings = tuple(_ranking(trials, few, rows[-1]) for few in rows[:-1])
    best = sorted(trials, key=lambda trial: (-trial.best_known[0], -trial.best_known[1], trial.number))
    return Sweep(prepared.recipe.task, metric, rows, tuple(best), rankings, folder)


def _ranking(trials: Sequence[Trial], few: int, most: int) -> Ranking:
    pairs = [
        (trial.values[few], trial.values[most]) for trial in trials if few in trial.values and most in trial.values
    ]
    return Ranking(few, rank_correlation(*zip(*pairs, strict=True)) if len(pairs) >= 3 else None, len(pairs))


def _nested(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return the rows in an order whose beginnings are the smaller budgets."""
    return [examples[row] for row in nested_order([e.id for e in examples], [e.label for e in examples], seed)]


def as_overrides(settings: Settings) -> list[str]:
    """Return settings as `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def draw(found: Sweep, path: Path) -> None:
    """Draw each setting's value against the rows it was trained on, to a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    shown = 6
    for place, trial in enumerate(found.trials):
        points = sorted(trial.values.items())
        label = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in trial.settings.items())
        named = place < shown
        axes.plot(
            [rows for rows, _ in points],
            [abs(value) if found.metric == "loss" else value for _, value in points],
            "o-",
            color=None if named else "#c4cad4",
            linewidth=1.8 if named else 0.8,
            zorder=2 if named else 1,
            label=label if named else None,
        )
    axes.set_xscale("log")
    axes.set_xticks(found.rows, [str(rows) for rows in found.rows])
    axes.minorticks_off()
    axes.set_xlabel("training rows")
    axes.set_ylabel(f"validation {found.metric}")
    small = found.rankings[0].correlation if found.rankings else None
    told = "" if small is None else f", rank correlation of small and full {small:.2f}"
    axes.set_title(f"{found.task}: {len(found.trials)} settings{told}")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
