"""How many planted label errors an audit finds, by base and by what the heads read; cleanlab beside it.

    python benchmarks/audit.py [--data trec6] [--bases all-minilm-l6-v2] [--seeds 0 1 2 3 4] [--flips 0.1]
        [--strengths 0.01] [--words 10] [--folds 5] [--cache FOLDER] [--peer PYTHON]

Flips a share of the train labels to others drawn evenly, and audits. Precision: which part of the queue was flipped
(the public labels' own errors count as wrong finds); recall: which part of the flips is in the queue; both at the
queue's own length, and at as many rows as were flipped ("top"). `--cache` keeps features between runs. `--peer` is the
Python of an environment that has cleanlab, which is handed the same probabilities.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from workload import machine, print_table

from adapterhub.base.source import open_base
from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.heads import out_of_fold, standardise
from adapterhub.labeling.audit import doubts, find_suspects
from adapterhub.labeling.words import word_features
from adapterhub.pipeline import audit

DATA = Path(os.environ.get("ADAPTERHUB_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given")
PEER = f"""
import sys, numpy, json
from cleanlab.filter import find_label_issues
given, chances = numpy.load(sys.argv[1] + "/given.npy"), numpy.load(sys.argv[1] + "/chances.npy")
found = {{name: find_label_issues(given, chances, filter_by=name, n_jobs=1) for name in {FILTERS}}}
print(json.dumps({{name: each.nonzero()[0].tolist() for name, each in found.items()}}))
"""


def features_of(name: str, data: str, examples: Sequence[Example], cache: Path | None) -> np.ndarray:
    """Return the features, from the cache where they are there."""
    file = None if cache is None else cache / f"{data}-{name}.npy"
    if file is not None and file.is_file():
        return np.load(file)
    started = time.perf_counter()
    found = audit.text_features(open_base(name), [example.text for example in examples])
    print(f"{len(examples)} texts through {name}: {time.perf_counter() - started:.0f} s", flush=True)
    if file is not None:
        np.save(file, found)
    return found


def flipped(given: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels with some of them flipped, and which."""
    draw = np.random.default_rng(seed)
    wrong = draw.choice(len(given), int(share * len(given)), replace=False)
    labels = given.copy()
    labels[wrong] = (labels[wrong] + draw.integers(1, classes, len(wrong))) % classes
    return labels, np.isin(np.arange(len(given)), wrong)


def judged(rows: Sequence[int], wrong: np.ndarray) -> dict[str, float]:
    found = wrong[list(rows)].sum()
    return {"length": len(rows), "precision": found / max(1, len(rows)), "recall": found / wrong.sum()}


def measure(chances: np.ndarray, labels: np.ndarray, gold: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    suspects = find_suspects(chances, labels)
    caught = [each for each in suspects if wrong[each.row]]
    margins, _ = doubts(chances, labels)
    return {
        "accuracy": float((chances.argmax(1) == gold).mean()),
        "top": float(wrong[np.argsort(-margins, kind="stable")[: wrong.sum()]].mean()),
        **judged([each.row for each in suspects], wrong),
        "suggested right": sum(each.suggested == gold[each.row] for each in caught) / max(1, len(caught)),
    }


def peer(python: str, chances: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/given.npy", labels)
        np.save(f"{folder}/chances.npy", chances)
        done = subprocess.run([python, "-c", PEER, folder], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def whole(examples: Sequence[Example], features: np.ndarray, names: Sequence[str], labels: np.ndarray) -> list[int]:
    """Return the rows of the queue as the command gives it, twins included."""
    named = [
        replace(each, id=str(row), fields={**each.fields, "label": names[label]})
        for row, (each, label) in enumerate(zip(examples, labels, strict=True))
    ]
    return [int(each.id) for each in audit.judge(named, features, names)[0]]


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="trec6")
    parser.add_argument("--bases", nargs="+", default=[audit.BASE])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--flips", type=float, default=0.1)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.01])
    parser.add_argument("--words", type=float, nargs="+", default=[10.0], help="C of the heads on words")
    parser.add_argument("--folds", type=int, default=audit.FOLDS)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--peer", metavar="PYTHON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    examples = list(read_examples(DATA / options.data / "train.jsonl", "classification"))
    names = sorted({str(each.label) for each in examples})
    gold = np.array([names.index(str(each.label)) for each in examples])
    given = {name: features_of(name, options.data, examples, options.cache) for name in options.bases}
    words = word_features([each.text for each in examples])
    found: dict[str, list[dict[str, float]]] = {}
    started = time.perf_counter()
    for seed in options.seeds:
        labels, wrong = flipped(gold, len(names), options.flips, seed)

        def heads(features: Any, strength: float, *, seed: int = seed, labels: np.ndarray = labels) -> np.ndarray:
            return out_of_fold(features, labels, len(names), folds=options.folds, seed=seed, strength=strength)

        by_words = {strength: heads(words, strength) for strength in options.words}
        for strength, chances in by_words.items():
            found.setdefault(f"words, C {strength:g}", []).append(measure(chances, labels, gold, wrong))
        for name, features in given.items():
            for strength in options.strengths:
                alone = heads(standardise(features), strength)
                found.setdefault(f"{name}, C {strength:g}", []).append(measure(alone, labels, gold, wrong))
                for other, chances in by_words.items():
                    both = (alone + chances) / 2
                    what = f"{name}, C {strength:g}, with words, C {other:g}"
                    found.setdefault(what, []).append(measure(both, labels, gold, wrong))
                    if options.peer:
                        for rule, rows in peer(options.peer, both, labels).items():
                            found.setdefault(f"cleanlab on {what}: {rule}", []).append(judged(rows, wrong))
            rows = whole(examples, features, names, labels)
            found.setdefault(f"{name}: the command's queue, with twins", []).append(judged(rows, wrong))
    print(f"{machine()}; {options.data}, {len(examples)} rows, {options.flips:.0%} flipped, seeds {options.seeds}")
    print(f"{time.perf_counter() - started:.0f} s for all heads\n")
    columns = ("accuracy", "top", "length", "precision", "recall", "suggested right")
    print_table(["what", *columns], [[what, *(_cell(each, name) for name in columns)] for what, each in found.items()])


def _cell(runs: list[dict[str, float]], name: str) -> str:
    if name not in runs[0]:
        return ""
    values = [run[name] for run in runs]
    form = ".0f" if name == "length" else ".3f"
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
