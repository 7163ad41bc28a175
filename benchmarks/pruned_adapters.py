"""Do heads predict adapters? TREC-6 pruned to a half by five methods, then learnt by heads and by adapters.

`python benchmarks/curation.py adapters --out runs.jsonl`: 1,000 training rows drawn by a seed, as they are or with 15%
of the labels flipped, 500 kept; an adapter on the upper 4 layers over one cached trunk, four epochs, and a head on the
features that judged the rows; both answer the same 500 test rows, once, after the last step. With 5 seeds these are 50
runs, and 10 with all 1,000 rows; what is in the file is not run again. Epochs give a half half of the steps: with
`--steps 250` it has those of all rows (another --out).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from public import PublicTask, load
from rich.console import Console

from adapterhub.base.feature_store import DEFAULT_BASE, stored_features
from adapterhub.base.source import open_base
from adapterhub.cli.train_progress import progress_for
from adapterhub.curation.influence import plan_by_influence
from adapterhub.curation.prune import prune
from adapterhub.curation.scores import INFLUENCE
from adapterhub.curation.stand_in import StandIn
from adapterhub.data.example import Example
from adapterhub.errors import AdapterHubError
from adapterhub.metrics import rank_correlation
from adapterhub.pipeline.influence import influence_of
from adapterhub.training.train import Trainer

METHODS = ("random", "easy", "hard", "prototype", INFLUENCE, "all")
ROWS, KEEP, TEST, TARGET, FLIPS = 1000, 0.5, 500, 64, 0.15
EPOCHS = "training.epochs=4"
SETTINGS = (
    "lora.layers=top-4",
    "training.batch_size=16",
    "training.eval_every=1000000",  # once, at the end: nothing is chosen by the rows that measure
)
_Key = tuple[int, bool, str]


def measure_adapters(seeds: int, out: Path, most: int, steps: int, methods: Sequence[str]) -> None:
    """Run what `out` lacks, at most so many runs (0: all), and print the table; `steps` 0 is four epochs."""
    settings = (*SETTINGS, *((f"training.steps={steps}", "training.epochs=null") if steps else (EPOCHS,)))
    task = PublicTask.open("trec6", SETTINGS)
    trainer, base = Trainer(task.base), open_base(DEFAULT_BASE)
    known = _known(out)
    left = most or -1
    for seed in range(seeds):
        for flipped in (False, True):
            wanted = [each for each in methods if (seed, flipped, each) not in known]
            if not wanted or left == 0:
                continue
            draw = _Draw.of(task, base, seed, flipped=flipped)
            for method in wanted:
                if left == 0:
                    break
                left -= 1
                known[seed, flipped, method] = record = _run(task, trainer, draw, method, seed, settings)
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"seed": seed, "flipped": flipped, "method": method, **record}) + "\n")
    trainer.close()
    _print(known)


class _Draw:
    """One seed's rows, their labels as they are learnt from, and what heads see of them."""

    def __init__(self, rows: Sequence[Example], labels: np.ndarray, features: np.ndarray, heads: StandIn) -> None:
        self.rows, self.labels, self.features, self.heads = rows, labels, features, heads

    @classmethod
    def of(cls, task: PublicTask, base: object, seed: int, *, flipped: bool) -> _Draw:
        names, draw = list(task.spec.labels), np.random.default_rng(seed)
        rows = [task.splits.train[at] for at in draw.permutation(len(task.splits.train))[:ROWS]]
        labels = np.array([names.index(str(row.label)) for row in rows])
        if flipped:
            wrong = draw.random(ROWS) < FLIPS
            labels[wrong] = (labels[wrong] + draw.integers(1, len(names), wrong.sum())) % len(names)
            rows = [
                replace(row, fields={**row.fields, "label": names[label]})
                for row, label in zip(rows, labels, strict=True)
            ]
        test = task.splits.test[:TEST]
        both = stored_features(base, [row.text for row in (*rows, *test)])  # type: ignore[arg-type]
        gold = np.array([names.index(str(row.label)) for row in test])
        return cls(rows, labels, both[:ROWS], StandIn.of(both[:ROWS], labels, both[ROWS:], gold))


def _run(
    task: PublicTask, trainer: Trainer, draw: _Draw, method: str, seed: int, settings: Sequence[str]
) -> dict[str, float]:
    stays = np.ones(ROWS, bool)
    if method == INFLUENCE:
        target = task.splits.validation[:TARGET]
        values = influence_of(task.base, draw.rows, target, "classification")
        stays = plan_by_influence(values, draw.labels, KEEP, floor=1.0).stays
    elif method != "all":
        count = round(KEEP * ROWS)
        stays = prune(draw.features, draw.labels, len(task.spec.labels), method, count, seed=seed)
    rows = np.flatnonzero(stays)
    recipe = load("trec6", [*settings, f"training.seed={seed}"])
    job = replace(
        task.job([0]),
        recipe=recipe.model_copy(update={"task": f"{method}-{seed}"}),
        train=[draw.rows[row] for row in rows],
        validation=task.splits.test[:TEST],
    )
    (outcome,) = trainer.train([job], progress_for(Console(stderr=True)))
    if isinstance(outcome, AdapterHubError):
        raise outcome
    assert outcome.result.best is not None
    return {
        "adapter": outcome.result.best.value,
        "head": float(1 - draw.heads.wrong(rows).mean()),
        "seconds": round(outcome.result.seconds, 1),
    }


def _known(out: Path) -> dict[_Key, dict[str, float]]:
    """Return the runs that a file has; the last line of a killed process is left out."""
    found: dict[_Key, dict[str, float]] = {}
    for line in out.read_text(encoding="utf-8").splitlines() if out.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[record["seed"], record["flipped"], record["method"]] = record
    return found


def _print(known: Mapping[_Key, Mapping[str, float]]) -> None:
    """Print means over seeds, and by how much each method is above random, adapters beside heads."""
    values: dict[tuple[bool, str], list[Mapping[str, float]]] = defaultdict(list)
    for (_, flipped, method), record in sorted(known.items()):
        values[flipped, method].append(record)
    print("| labels, kept | seeds | adapters | less random | heads | less random | seconds a run |")
    print("|---|---|---|---|---|---|---|")
    gains: list[tuple[float, float]] = []
    for flipped in (False, True):
        for method in METHODS:
            if not (found := values[flipped, method]):
                continue
            cells = []
            for what in ("adapter", "head"):
                pairs = [
                    (record[what], known[seed, flipped, "random"][what])
                    for (seed, noisy, each), record in known.items()
                    if (noisy, each) == (flipped, method) and (seed, flipped, "random") in known
                ]
                gain = np.array([100 * (own - random) for own, random in pairs])
                spread = f" ± {gain.std(ddof=1) / np.sqrt(len(gain)):.1f}" if len(gain) > 1 else ""
                cells += [f"{np.mean([each[what] for each in found]):.1%}", f"{gain.mean():+.1f}{spread}"]
            if method not in ("random", "all"):
                gains.append((float(cells[1].split()[0]), float(cells[3].split()[0])))
            seconds = f"{np.mean([each['seconds'] for each in found]):.0f}"
            name = f"{'15% flipped' if flipped else 'clean'}, {method}"
            print(f"| {name} | {len(found)} | " + " | ".join(cells) + f" | {seconds} |")
    if len(gains) > 2:
        told = rank_correlation(*zip(*gains, strict=True))
        print(f"\nRank correlation of the gains over random, heads and adapters: {told:.2f} over {len(gains)}.")
