"""Label models on votes whose truth is known: recovery, copies, and accuracy beside Snorkel's LabelModel.

    python benchmarks/label_models.py recovery|clones|simulated|rules [--snorkel PYTHON] [--tasks …] [--data FOLDER]

Simulated votes need no data; `rules` votes by benchmarks/label_rules.py on the training rows of TREC-6, SST-2 and Subj,
whose gold labels serve to measure alone. PYTHON is that of an environment with snorkel 0.10 in it
(`pip install snorkel==0.10.0`). Shares of right labels are of rows with a vote; a tie counts by its part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import label_rules
import numpy as np

from adapterhub.labeling.label_model import LabelFit, fit_votes
from adapterhub.labeling.label_model.dawid_skene import dawid_skene
from adapterhub.labeling.label_model.majority import majority
from adapterhub.labeling.label_model.metal import metal
from adapterhub.labeling.label_model.table import patterns_of, posterior
from adapterhub.labeling.votes import NO_VOTE, Votes
from adapterhub.metrics import mcnemar

HERE = Path(__file__).parent
ACCURACIES = np.linspace(0.55, 0.9, 10)


def noisy(truth: np.ndarray, accuracy: float, labels: int, draw: np.random.Generator) -> np.ndarray:
    wrong = draw.random(len(truth)) >= accuracy
    return np.where(wrong, (truth + draw.integers(1, labels, len(truth))) % labels, truth)


def votes_of(matrix: np.ndarray, labels: int) -> Votes:
    rows, voters = matrix.shape
    names = tuple(f"label {n}" for n in range(labels))
    return Votes(
        tuple(map(str, range(rows))), tuple(f"voter {n}" for n in range(voters)), names, matrix.astype(np.int32)
    )


def shares(names: tuple[str, ...], balance: np.ndarray) -> dict[str, float]:
    return dict(zip(names, map(float, balance / balance.sum()), strict=True))


def hits(probs: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    best = probs >= probs.max(axis=1, keepdims=True) - 1e-9
    return (best[np.arange(len(truth)), truth] / best.sum(axis=1))[seen]


def recovery(_: argparse.Namespace) -> None:
    """Mean |error| of estimated accuracies of ten independent voters, 5 seeds, and its slope over the rows."""
    sizes = (250, 1000, 4000, 10_000, 40_000)
    print("| labels, coverage | model | " + " | ".join(f"{n:,} rows" for n in sizes) + " | slope |")
    print("|---" * (len(sizes) + 3) + "|")
    for labels, coverage in ((2, 1.0), (4, 1.0), (2, 0.5)):
        for model in ("dawid-skene", "metal"):
            errors = []
            for rows in sizes:
                each = []
                for seed in range(5):
                    draw = np.random.default_rng(seed)
                    truth = draw.integers(0, labels, rows)
                    matrix = np.stack([noisy(truth, a, labels, draw) for a in ACCURACIES], axis=1)
                    votes = votes_of(np.where(draw.random(matrix.shape) < coverage, matrix, NO_VOTE), labels)
                    even = shares(votes.labels, np.ones(labels)) if model == "metal" else None
                    each.append(np.abs(fit_votes(votes, model, even).accuracy - ACCURACIES).mean())
                errors.append(float(np.mean(each)))
            slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
            shown = " | ".join(f"{each:.4f}" for each in errors)
            print(f"| {labels}, {coverage:.0%} | {model} | {shown} | {slope:.2f} |", flush=True)


def clones(_: argparse.Namespace) -> None:
    """Three independent voters of 75% and c copies of one of 60%: right labels, the mean of 5 seeds of 5,000 rows."""
    print("| copies change | c | majority | DS, all votes | MeTaL, all votes | dawid-skene | metal | auto |")
    print("|---|---|---|---|---|---|---|---|")
    for noise in (0.0, 0.05, 0.1, 0.2):
        for copies in range(1, 9):
            found = np.mean([_clone_run(noise, copies, seed) for seed in range(5)], axis=0)
            print(f"| {noise:.0%} | {copies} | " + " | ".join(f"{each:.3f}" for each in found) + " |", flush=True)


def _clone_run(noise: float, copies: int, seed: int) -> list[float]:
    draw = np.random.default_rng(100 * seed + copies)
    truth = draw.integers(0, 2, 5000)
    columns = [noisy(truth, 0.75, 2, draw) for _ in range(3)]
    copied = noisy(truth, 0.6, 2, draw)
    matrix = np.stack(columns + [noisy(copied, 1 - noise, 2, draw) for _ in range(copies)], axis=1).astype(np.int32)
    even, seen = np.full(2, 0.5), np.ones(5000, dtype=bool)
    patterns = patterns_of(matrix)
    plain = []
    for fitted, silence in ((dawid_skene(patterns, 2), True), (metal(patterns, even), False)):
        plain.append(posterior(patterns.votes, fitted.balance, fitted.table, abstain=silence)[patterns.of_row])
    votes = votes_of(matrix, 2)
    merged = [fit_votes(votes, model).probs for model in ("dawid-skene", "metal", "auto")]
    return [float(hits(each, truth, seen).mean()) for each in (majority(matrix, even), *plain, *merged)]


def worlds() -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (name, truth, votes, balance) of simulated tasks, 3 seeds each."""
    made = (
        ("2 labels, always vote", [0.5, 0.5], 1.0),
        ("2 labels 90:10, always vote", [0.9, 0.1], 1.0),
        ("2 labels, 30% coverage", [0.5, 0.5], 0.3),
        ("4 labels, 50% coverage", [0.25] * 4, 0.5),
        ("6 labels uneven, 50% coverage", [0.3, 0.25, 0.2, 0.12, 0.08, 0.05], 0.5),
    )
    for name, balance, coverage in made:
        for seed in range(3):
            draw = np.random.default_rng(seed)
            truth = draw.choice(len(balance), 5000, p=balance)
            matrix = np.stack([noisy(truth, a, len(balance), draw) for a in ACCURACIES], axis=1)
            yield name, truth, np.where(draw.random(matrix.shape) < coverage, matrix, NO_VOTE), np.array(balance)


def simulated(options: argparse.Namespace) -> None:
    """Right labels on simulated votes, the mean of 3 seeds, the class balance given to all but `dawid-skene`."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, truth, matrix, balance in worlds():
        found.setdefault(name, []).append(_compared(options, truth, votes_of(matrix, len(balance)), balance))
    columns = list(next(iter(found.values()))[0])
    print("| votes | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name, runs in found.items():
        print(f"| {name} | " + " | ".join(f"{np.mean([run[each] for run in runs]):.4f}" for each in columns) + " |")


def _compared(options: argparse.Namespace, truth: np.ndarray, votes: Votes, balance: np.ndarray) -> dict[str, float]:
    seen = (votes.matrix != NO_VOTE).any(axis=1)
    given = shares(votes.labels, balance)
    probs = {
        "majority": majority(votes.matrix, balance),
        "dawid-skene": fit_votes(votes, "dawid-skene").probs,
        "metal": fit_votes(votes, "metal", given).probs,
    }
    right = {name: float(hits(each, truth, seen).mean()) for name, each in probs.items()}
    for epochs in (100, 1000) if options.snorkel else ():
        runs = snorkel(options.snorkel, votes.matrix, balance, epochs, 1)
        right[f"Snorkel, {epochs} epochs"] = float(np.mean([hits(run, truth, seen).mean() for run in runs]))
    return right


def snorkel(python: str, matrix: np.ndarray, balance: np.ndarray, epochs: int, seeds: int) -> np.ndarray:
    """Return the probabilities [seeds, rows, labels] of Snorkel's LabelModel, run by `python`."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "votes.npz", Path(folder) / "probs.npz"
        np.savez(source, matrix=matrix, balance=balance)
        worker = HERE / "workers" / "snorkel_worker.py"
        subprocess.run([python, worker, source, target, str(epochs), str(seeds)], check=True, capture_output=True)
        with np.load(target) as found:
            return found["probs"]


def rules(options: argparse.Namespace) -> None:
    """Right labels of rules on training rows whose gold labels no model sees."""
    for task, made in (("trec6", label_rules.TREC6), ("sst2", label_rules.SST2), ("subj", label_rules.SUBJ)):
        if task not in options.tasks:
            continue
        rows = [json.loads(line) for line in (options.data / task / "train.jsonl").read_text("utf-8").splitlines()]
        names = tuple(sorted({row["label"] for row in rows}))
        votes = Votes.of(label_rules.votes(made, [row["text"] for row in rows]), map(str, range(len(rows))), names)
        truth = np.array([names.index(row["label"]) for row in rows])
        true = np.bincount(truth, minlength=len(names)) / len(rows)
        even = np.full(len(names), 1 / len(names))
        seen = (votes.matrix != NO_VOTE).any(axis=1)
        cast = votes.matrix != NO_VOTE
        best = max(float((votes.matrix[c, v] == truth[c]).mean()) for v, c in enumerate(cast.T))
        print(f"{task}: {len(rows)} rows, {len(votes.voters)} rules, coverage {seen.mean():.3f}, best rule {best:.3f}")
        base = hits(majority(votes.matrix, true), truth, seen)
        print(f"  {'majority':42s}{base.mean():.4f}")
        started = time.perf_counter()
        ours = {
            "dawid-skene, no balance": fit_votes(votes, "dawid-skene"),
            "metal, balance true": fit_votes(votes, "metal", shares(names, true)),
            "metal, balance even": fit_votes(votes, "metal", shares(names, even)),
            "auto, no balance": fit_votes(votes),
        }
        seconds = (time.perf_counter() - started) / len(ours)
        for name, fit in ours.items():
            _line(name, hits(fit.probs, truth, seen), base, "" if not fit.merged else f"merged {fit.merged}")
        print(f"  {seconds:.2f} s a fit")
        if options.snorkel:
            _snorkel_lines(options.snorkel, votes, {"true": true, "even": even}, ours, (truth, seen, base))


def _snorkel_lines(
    python: str,
    votes: Votes,
    balances: dict[str, np.ndarray],
    ours: dict[str, LabelFit],
    known: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    truth, seen, base = known
    for label, balance in balances.items():
        mine = hits(ours[f"metal, balance {label}"].probs, truth, seen)
        for epochs in (100, 1000):
            runs = [hits(each, truth, seen) for each in snorkel(python, votes.matrix, balance, epochs, 3)]
            by_seed = "/".join(f"{run.mean():.4f}" for run in runs)
            more = f"by seed {by_seed}; {_beside(runs[0], mine)}"
            _line(f"Snorkel, {epochs} epochs, balance {label}", runs[0], base, more)


def _beside(theirs: np.ndarray, mine: np.ndarray) -> str:
    test = mcnemar((theirs > 0.5).tolist(), (mine > 0.5).tolist())
    return f"ours right alone {test.gained}, theirs {test.lost}, p = {test.p:.2g}"


def _line(name: str, right: np.ndarray, base: np.ndarray, more: str) -> None:
    print(f"  {name:42s}{right.mean():.4f}  {right.mean() - base.mean():+.4f}  {more}", flush=True)


if __name__ == "__main__":
    parts = {each.__name__: each for each in (recovery, clones, simulated, rules)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--snorkel", metavar="PYTHON")
    parser.add_argument("--tasks", nargs="*", default=["trec6", "sst2", "subj"])
    data = Path(os.environ.get("ADAPTERHUB_DATA", HERE.parents[1] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data)
    chosen = parser.parse_args()
    parts[chosen.part](chosen)
