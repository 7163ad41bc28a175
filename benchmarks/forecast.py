"""How well a quarter of the data foretells the error on all of it: heads on stored features, 50 sub-tasks.

    python benchmarks/forecast.py [--seeds 5] [--cache FOLDER]

Of each sub-task a quarter of the training rows is drawn once and taken for all there is. A ladder inside it, its top
the whole quarter, is fitted by every form and asked for the error on four times as many rows, all of the sub-task's.
Prints Markdown. `--cache` keeps what heads got wrong, so that ways to fit can be compared without fitting them again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from public import DATA
from workload import machine, print_table

from adapterhub.base.feature_store import DEFAULT_BASE, stored_features
from adapterhub.base.source import open_base
from adapterhub.curation.forecast import Forecast, Point
from adapterhub.curation.ladder import Ladder
from adapterhub.curation.learning_curve import FORMS, Form, fit_curves
from adapterhub.curation.nested import nested_order
from adapterhub.curation.stand_in import StandIn
from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.pipeline.rungs import ladder_sizes

COLUMNS = ("data", "sub-tasks", "error at 25%", "at 100%", *FORMS, "no change", "width of the interval", "covered")


@dataclass(frozen=True)
class Task:
    """A sub-task: which training and which test rows of a data set."""

    name: str
    data: str
    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Data:
    """A public data set: rows, heads to be fitted on them, and the labels' names."""

    examples: list[Example]
    heads: StandIn
    names: list[str]

    @classmethod
    def read(cls, name: str) -> Data:
        """Read the rows and their features."""
        base = open_base(DEFAULT_BASE)
        train, test = (
            list(read_examples(DATA / name / f"{part}.jsonl", "classification")) for part in ("train", "test")
        )
        names = sorted({str(each.label) for each in train})
        features = [stored_features(base, [each.text for each in rows]) for rows in (train, test)]
        labels = [np.array([names.index(str(each.label)) for each in rows]) for rows in (train, test)]
        return cls(train, StandIn.of(features[0], labels[0], features[1], labels[1]), names)

    def of(self, classes: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return which training and test rows have one of these labels."""
        return np.flatnonzero(np.isin(self.heads.labels, classes)), np.flatnonzero(np.isin(self.heads.gold, classes))


class Sets(dict[str, Data]):
    """Data sets by name, read when they are first asked for."""

    def __missing__(self, name: str) -> Data:
        self[name] = Data.read(name)
        return self[name]


def sub_tasks(sets: Sets) -> Iterator[Task]:
    """Yield the sub-tasks, the same each time."""
    draw = np.random.default_rng(0)
    clinc, banking = sets["clinc150"], sets["banking77"]
    domains: dict[str, list[int]] = {}
    for domain, names in json.loads((DATA / "clinc150" / "domains.json").read_text()).items():
        for name in names if isinstance(names, list) else [domain]:
            group = domain if isinstance(names, list) else names
            if name in clinc.names:
                domains.setdefault(group, []).append(clinc.names.index(name))
    for domain, classes in sorted(domains.items()):
        yield Task(f"clinc150, {domain}", "clinc150", *clinc.of(classes))
    for turn in range(10):
        classes = draw.choice(len(clinc.names), 20, replace=False)
        yield Task(f"clinc150, 20 intents ({turn})", "clinc150", *clinc.of(classes))
    for turn in range(16):
        count = (5, 10, 15, 20)[turn % 4]
        yield Task(
            f"banking77, {count} intents ({turn})", "banking77", *banking.of(draw.choice(77, count, replace=False))
        )
    for turn in range(5):
        classes = draw.choice(6, 3, replace=False)
        yield Task(f"trec6, 3 classes ({turn})", "trec6", *sets["trec6"].of(classes))
    for name in ("trec6", "sst2", "subj"):
        order = draw.permutation(len(sets[name].examples))
        test = np.arange(len(sets[name].heads.gold))
        half = len(order) // 2
        for part, rows in (("one half", order[:half]), ("other half", order[half:]), ("all", order)):
            yield Task(f"{name}, {part}", name, np.sort(rows), test)


def measure(task: Task, data: Data, seeds: int) -> tuple[Ladder, np.ndarray]:
    """Return the ladder inside a quarter of a sub-task, and what is wrong after training on all of it."""
    labels = data.heads.labels

    def order(rows: np.ndarray, seed: int) -> np.ndarray:
        return rows[nested_order([data.examples[row].id for row in rows], labels[rows].tolist(), seed)]

    quarter = order(task.train, -1)[: len(task.train) // 4]
    sizes = ladder_sizes(len(quarter), len(np.unique(labels[task.train])))
    heads = StandIn(data.heads.train, labels, data.heads.test[task.test], data.heads.gold[task.test])
    wrong = np.empty((len(sizes), seeds, len(task.test)), bool)
    for seed in range(seeds):
        drawn = order(quarter, seed)
        for rung, size in enumerate(sizes[:-1]):
            wrong[rung, seed] = heads.wrong(drawn[:size])
    wrong[-1] = heads.wrong(quarter)
    return Ladder(sizes, wrong), heads.wrong(task.train)


@dataclass(frozen=True)
class Judged:
    """What was foretold of a sub-task, and what was so: errors in points of a hundred."""

    task: Task
    forecast: Forecast
    full: float

    @property
    def ahead(self) -> Point:
        """The forecast for all rows, or for the most that it speaks of where a quarter was rounded down."""
        return self.forecast.at(min(len(self.task.train), self.forecast.limit))

    @property
    def covered(self) -> bool:
        """Whether the interval has what was so."""
        return self.ahead.low <= self.full <= self.ahead.high

    def miss(self, form: Form | None) -> float:
        """Return by how much a form was wrong, None meaning that nothing changes beyond the quarter."""
        if form is None:
            return float(self.forecast.ladder.errors[-1]) - self.full
        return self.forecast.curves[form].at(self.ahead.n) - self.full


def report(judged: list[Judged]) -> None:
    """Print tables: errors of the forecasts by data set, and what the back-tests had said."""
    rows = []
    for name in (*dict.fromkeys(each.task.data for each in judged), "all"):
        part = [each for each in judged if name in ("all", each.task.data)]
        points = [100 * np.mean([abs(each.miss(form)) for each in part]) for form in (*FORMS, None)]
        rungs = [
            100 * np.mean([each.forecast.ladder.errors[-1] for each in part]),
            100 * np.mean([e.full for e in part]),
        ]
        width = 100 * np.mean([each.ahead.high - each.ahead.low for each in part])
        covered = f"{sum(each.covered for each in part)} of {len(part)}"
        rows.append([name, len(part), *(f"{each:.1f}" for each in (*rungs, *points, width)), covered])
    print_table(COLUMNS, rows)
    print()
    tests = [(each, each.forecast.backtest) for each in judged if each.forecast.backtest is not None]
    chosen = [abs(each.miss(test.best)) for each, test in tests]
    power = [abs(each.miss("power")) for each, _ in tests]
    print(f"{len(tests)} back-tests: {sum(test.within for _, test in tests)} within their interval;")
    print(
        f"the form that was best in its back-test misses by {100 * np.mean(chosen):.2f}, "
        f"power by {100 * np.mean(power):.2f};"
    )
    best = {form: sum(test.best == form for _, test in tests) for form in FORMS}
    nearest = {form: sum(min(FORMS, key=lambda f: abs(each.miss(f))) == form for each in judged) for form in FORMS}
    print(f"best in the back-test {best}, nearest to what was so {nearest};")
    bias = 100 * np.mean([each.miss("power") for each in judged])
    worst = max(judged, key=lambda each: abs(each.miss("power")))
    print(f"power on average {bias:+.2f} too high, at worst {100 * worst.miss('power'):+.1f} ({worst.task.name})")
    seeds = np.array([_by_seeds(each) for each in judged])
    print(f"intervals that resample seeds alone: {seeds[:, 0].sum():.0f} covered, {100 * seeds[:, 1].mean():.1f} wide")


def _by_seeds(each: Judged) -> tuple[float, float]:
    """Return whether an interval from resampled seeds alone has the error, and its width."""
    ladder = each.forecast.ladder
    means = Ladder(ladder.sizes, ladder.wrong.mean(axis=2, keepdims=True)).resample(1000)
    curves = fit_curves(np.array(ladder.sizes), means, 1 / each.forecast.means.var(axis=0)).at(each.ahead.n)
    low, high = np.quantile(curves, (0.05, 0.95))
    return float(low <= each.full <= high), float(high - low)


def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    began = time.process_time()
    sets, judged = Sets(), []
    for task in sub_tasks(sets):
        file = None if asked.cache is None else asked.cache / f"{task.name}.npz"
        if file is not None and file.is_file():
            kept = np.load(file)
            ladder, full = Ladder(tuple(kept["sizes"].tolist()), kept["wrong"]), kept["full"]
        else:
            ladder, full = measure(task, sets[task.data], asked.seeds)
            if file is not None:
                np.savez_compressed(file, sizes=ladder.sizes, wrong=ladder.wrong, full=full)
        judged.append(Judged(task, Forecast.of(ladder), float(full.mean())))
        told = judged[-1].ahead
        print(
            f"{task.name}: {ladder.sizes[-1]} rows {ladder.errors[-1]:.1%}, {len(task.train)} rows {full.mean():.1%}, "
            f"foretold {told.error:.1%} ({told.low:.1%} to {told.high:.1%})",
            flush=True,
        )
    print(f"\n{machine()}; {time.process_time() - began:.0f} s of one core\n")
    report(judged)


if __name__ == "__main__":
    main()
