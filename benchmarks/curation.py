"""Which rows are worth having: pruning, duplicates, selection, time and memory, with heads on stored features.

    python benchmarks/curation.py features|prune|rule|duplicates|select|scale|influence|adapters [--seeds 10]

Prints Markdown tables. But for `adapters` nothing is trained but heads: what they say of rows is no proof of what
adapters say.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from influence import measure_influence
from pruned_adapters import METHODS, measure_adapters
from public import DATA

from adapterhub.base.feature_store import DEFAULT_BASE, stored_features
from adapterhub.base.source import open_base
from adapterhub.curation.duplicates import Rules, find_duplicates
from adapterhub.curation.outlook import look_out
from adapterhub.curation.prune import chosen, prune, try_out, worth_from
from adapterhub.curation.rows import Rows
from adapterhub.curation.scores import INFLUENCE, score_rows
from adapterhub.curation.select import select
from adapterhub.data.example import Example
from adapterhub.heads import fit_head, standardise
from adapterhub.pipeline.influence import DEFAULT_DECODER, influence_of

METRICS = ("random", "easy", "hard", "margin", "loss", "forgetting", "prototype", "far", INFLUENCE)


@dataclass(frozen=True)
class Set:
    """A public data set: label indices and features [rows, dim], `raw` as stored, `train` and `test` standardised."""

    texts: Sequence[str]
    raw: np.ndarray
    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    gold: np.ndarray
    names: Sequence[str]
    target: Sequence[Example]

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return len(self.names)

    @classmethod
    def read(cls, name: str, base: str = DEFAULT_BASE, pooling: str | None = None, most: int = 0) -> Set:
        """Read a set, with `most` the first so many rows of a fixed order."""
        opened = open_base(base)
        rows = {split: _rows(name, split) for split in ("train", "test")}
        names = sorted({row["label"] for row in rows["train"]})
        texts, features, labels = {}, {}, {}
        for split, given in rows.items():
            if most:
                given = [given[at] for at in np.random.default_rng(0).permutation(len(given))[:most]]
            texts[split] = [row["text"] for row in given]
            features[split] = stored_features(opened, texts[split], pooling)
            labels[split] = np.array([names.index(row["label"]) for row in given])
        both = standardise(np.concatenate([features["train"], features["test"]]))
        count = len(features["train"])
        target = [_example(row["text"], row["label"]) for row in _rows(name, "validation")[: max(64, 2 * len(names))]]
        return cls(
            texts["train"],
            features["train"],
            both[:count],
            labels["train"],
            both[count:],
            labels["test"],
            names,
            target,
        )

    def accuracy(self, rows: np.ndarray, labels: np.ndarray, strength: float = 0.01) -> float:
        """Fit a head on these rows of train with these labels and return its test accuracy."""
        head = fit_head(self.train[rows], labels, strength=strength)
        return float((head.predict(self.test) == self.gold).mean())

    def influence(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the influence of these rows of train, so labelled, on rows of the validation split."""
        pool = [_example(self.texts[row], self.names[label]) for row, label in zip(rows, labels, strict=True)]
        return influence_of(open_base(DEFAULT_DECODER), pool, self.target, "classification")


def _example(text: str, label: str) -> Example:
    return Example("", {"text": text, "label": label})


def measure_features(names: Sequence[str]) -> None:
    """Print which base's features, which pooling: accuracy of heads on 1,000 training rows and 500 test rows."""
    print("| base, pooling | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for base, pooling in ((DEFAULT_BASE, "mean"), ("smollm2-135m-instruct", "mean"), ("smollm2-135m-instruct", "last")):
        cells = []
        for name in names:
            given = Set.read(name, base, pooling, 1000)
            given = Set(
                given.texts, given.raw, given.train, given.labels, given.test[:500], given.gold[:500], given.classes
            )
            rows = np.arange(len(given.labels))
            cells.append(f"{max(given.accuracy(rows, given.labels, each) for each in (0.0003, 0.001, 0.01, 0.1)):.1%}")
        print(f"| {base}, {pooling} | " + " | ".join(cells) + " |", flush=True)


def measure_pruning(
    names: Sequence[str], seeds: int, sizes: Sequence[int], metrics: Sequence[str], floor: float
) -> None:
    """Every metric at every share, on scarce and plentiful rows, clean and with 15% of the labels flipped."""
    for name in names:
        given = Set.read(name)
        print(f"\n| {name}: rows, labels, kept | all | " + " | ".join(metrics) + " | suspect |")
        print("|---|" + "---|" * (len(metrics) + 2))
        for size in (each or len(given.labels) for each in sizes):
            for flips in (0.0, 0.15):
                _prune_table(given, size, flips, seeds, metrics, floor)


def _prune_table(given: Set, size: int, flips: float, seeds: int, metrics: Sequence[str], floor: float) -> None:
    found: dict[tuple[float, str], list[float]] = defaultdict(list)
    noise = []
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        rows = draw.permutation(len(given.labels))[:size]
        labels = given.labels[rows].copy()
        wrong = draw.random(size) < flips
        labels[wrong] = (labels[wrong] + draw.integers(1, given.classes, wrong.sum())) % given.classes
        outlook = look_out(given.raw[rows], labels, given.classes, seed)
        noise.append(outlook.noise)
        scores = score_rows(given.raw[rows], labels, given.classes, outlook=outlook, seed=seed)
        influence = given.influence(rows, labels) if INFLUENCE in metrics else None
        found[1.0, "all"].append(given.accuracy(rows, labels))
        for keep in (0.3, 0.5, 0.7):
            for metric in metrics:
                if metric == INFLUENCE and influence is not None:
                    worth = influence
                else:
                    worth = -worth_from(scores, "prototype") if metric == "far" else worth_from(scores, metric, seed)
                stays = chosen(worth, labels, round(keep * size), floor=1.0 if metric == "random" else floor)
                found[keep, metric].append(given.accuracy(rows[stays], labels[stays]))
    for keep in (0.3, 0.5, 0.7):
        cells = [_against(found[keep, metric], found[keep, "random"]) for metric in metrics]
        what = f"{size:,}, {'clean' if not flips else f'{flips:.0%} flipped'}, {keep:.0%}"
        whole = f"{np.mean(found[1.0, 'all']):.1%}"
        print(f"| {what} | {whole} | " + " | ".join(cells) + f" | {np.mean(noise):.1%} |", flush=True)


def _against(values: Sequence[float], random: Sequence[float]) -> str:
    """Return a mean, in bold where it is above random by two standard errors, in italics where it is below."""
    gain = np.array(values) - np.array(random)
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    text = f"{np.mean(values) * 100:.1f}"
    if gain.any() and abs(gain.mean()) > 2 * error:
        return f"**{text}**" if gain.mean() > 0 else f"*{text}*"
    return text


def measure_rule(names: Sequence[str], seeds: int) -> None:
    """Print what `auto` chooses by its own trial, against the random share."""
    print("| data, rows, labels, kept | auto chose | auto | random |\n|---|---|---|---|")
    for name in names:
        given = Set.read(name)
        for size, flips, keep in ((1000, 0.0, 0.5), (1000, 0.15, 0.5), (4000, 0.0, 0.5), (4000, 0.15, 0.5)):
            scores: dict[str, list[float]] = defaultdict(list)
            picks: list[str] = []
            for seed in range(seeds):
                draw = np.random.default_rng(seed)
                rows = draw.permutation(len(given.labels))[:size]
                labels = given.labels[rows].copy()
                wrong = draw.random(size) < flips
                labels[wrong] = (labels[wrong] + draw.integers(1, given.classes, wrong.sum())) % given.classes
                count = round(keep * size)
                picks.append(try_out(given.raw[rows], labels, given.classes, count, seed=seed).best())
                for what, metric in (("auto", picks[-1]), ("random", "random")):
                    stays = prune(given.raw[rows], labels, given.classes, metric, count, seed=seed)
                    scores[what].append(given.accuracy(rows[stays], labels[stays]))
            chose = ", ".join(f"{metric} {picks.count(metric)}" for metric in sorted({*picks}))
            figures = f"{_against(scores['auto'], scores['random'])} | {np.mean(scores['random']) * 100:.1f}"
            print(f"| {name}, {size:,}, {flips:.0%} flipped, {keep:.0%} | {chose} | {figures} |", flush=True)


def measure_duplicates(names: Sequence[str], seeds: int) -> None:
    """Print what 30% planted duplicates cost at the same number of rows, and what dedup regains."""
    print("| data | planted, found | wrongly dropped | accuracy: clean | with duplicates | deduplicated and refilled |")
    print("|---|---|---|---|---|---|")
    for name in names:
        given = Set.read(name)
        clean, spoiled, regained, hits, false = [], [], [], [], []
        for seed in range(seeds):
            draw = np.random.default_rng(seed)
            order = draw.permutation(len(given.labels))
            size, extra = 1000, 300
            base, spare = order[: size - extra], order[size - extra :]
            copied = draw.choice(base, 60)[draw.integers(0, 60, extra)]  # some rows many times over
            texts = [_changed(given.texts[row], draw) for row in copied]
            mixed = np.concatenate([base, copied])
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "rows.jsonl"
                lines = [*(given.texts[row] for row in base), *texts]
                file.write_text(
                    "".join(
                        json.dumps({"text": t, "label": str(given.labels[r])}) + "\n"
                        for t, r in zip(lines, mixed, strict=True)
                    )
                )
                gone = set(find_duplicates(Rows.read([file]), Rules()).dropped)
            hits.append(sum(row >= len(base) for row in gone) / extra)
            false.append(sum(row < len(base) for row in gone))
            left = [row for at, row in enumerate(mixed) if at not in gone]
            refilled = np.array([*left, *spare[: size - len(left)]])
            for kept, values in ((order[:size], clean), (mixed, spoiled), (refilled, regained)):
                values.append(given.accuracy(kept, given.labels[kept]))
        figures = [f"{np.mean(values):.1%}" for values in (clean, spoiled, regained)]
        print(
            f"| {name} | 300, {np.mean(hits):.1%} | {np.mean(false):.1f} of 700 | " + " | ".join(figures) + " |",
            flush=True,
        )


def _changed(text: str, draw: np.random.Generator) -> str:
    """Return a text as it is, in other case and punctuation, or with one letter lost: a third each."""
    kind = draw.integers(3)
    if kind == 0:
        return text
    if kind == 1:
        return text.upper().rstrip("?. ") + " !"
    at = int(draw.integers(len(text)))
    return text[:at] + text[at + 1 :]


def measure_selection(names: Sequence[str], seeds: int, rules: Sequence[str]) -> None:
    """Accuracy after 300, 1,000 and 3,000 chosen labels, each rule in rounds, beside as many random rows."""
    sizes = (300, 1000, 3000)
    print("| data, rule | " + " | ".join(f"{size:,} labels" for size in sizes) + " |\n|---|" + "---|" * len(sizes))
    for name in names:
        given = Set.read(name)
        found: dict[str, list[list[float]]] = {}
        for rule in rules:
            found[rule] = [_chosen_in_rounds(given, rule, sizes, seed) for seed in range(seeds)]
            cells = [
                _against([run[at] for run in found[rule]], [run[at] for run in found["random"]])
                for at in range(len(sizes))
            ]
            print(f"| {name}, {rule} | " + " | ".join(cells) + " |", flush=True)


def _chosen_in_rounds(given: Set, rule: str, sizes: Sequence[int], seed: int) -> list[float]:
    known = np.empty(0, np.int64)
    left = np.arange(len(given.labels))
    values = []
    for size in sizes:
        cold = rule == "uncertainty" and not len(known)
        rows, _ = select(
            given.raw[left],
            size - len(known),
            "random" if cold else rule,
            labelled=given.raw[known],
            labels=given.labels[known],
            seed=seed,
        )
        known = np.concatenate([known, left[rows]])
        left = np.setdiff1d(left, known)
        values.append(given.accuracy(known, given.labels[known], 0.1))
    return values


def measure_scale(sizes: Sequence[int]) -> None:
    """Print CPU seconds and peak memory of each step at so many made-up rows, each in a process of its own."""
    print("| rows | step | CPU seconds | peak memory, MB |\n|---|---|---|---|")
    for size in sizes:
        for step in _STEPS:
            done = subprocess.run(
                [sys.executable, __file__, "step", "--step", step, "--sizes", str(size)],
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"| {size:,} | {step} | {done.stdout.strip()} |", flush=True)


_STEPS = ("nothing", "dedup", "dedup by features", "prototype", "el2n", "select 1,000")


def _step(step: str, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        features = np.memmap(Path(folder) / "features", np.float32, "w+", shape=(size, 384))
        labels = draw.integers(0, 20, size)
        centres = draw.normal(size=(20, 384)).astype(np.float32)
        for start in range(0, size, 10_000):
            part = centres[labels[start : start + 10_000]]
            features[start : start + 10_000] = part + draw.normal(size=part.shape).astype(np.float32) * 3
        file = Path(folder) / "rows.jsonl"
        if step.startswith("dedup"):
            with file.open("w") as out:
                out.writelines(f"{json.dumps({'text': text, 'label': 'a'})}\n" for text in _made_up(size, draw))
        started = time.process_time()
        if step == "dedup":
            find_duplicates(Rows.read([file]), Rules())
        elif step == "dedup by features":
            find_duplicates(Rows.read([file]), Rules(near=None, features=0.95), features=features)
        elif step in ("prototype", "el2n"):
            score_rows(features, labels, 20, [step])
        elif step.startswith("select"):
            known = np.arange(500)
            select(features[500:], 1000, "auto", labelled=features[known], labels=labels[known])
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{seconds:.1f} | {peak:.0f}")


def _made_up(count: int, draw: np.random.Generator) -> Iterator[str]:
    """Yield sentences of 12 words of 5,000, one in ten a copy with one word changed."""
    words = ["".join(chr(97 + letter) for letter in draw.integers(0, 26, 6)) for _ in range(5000)]
    before: list[str] = []
    for _ in range(count):
        if before and draw.random() < 0.1:
            text = list(before)
            text[int(draw.integers(12))] = words[int(draw.integers(5000))]
        else:
            text = [words[at] for at in draw.integers(0, 5000, 12)]
        before = text
        yield " ".join(text)


def _rows(name: str, split: str) -> list[dict[str, str]]:
    with (DATA / name / f"{split}.jsonl").open() as file:
        return [json.loads(line) for line in file]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=("features", "prune", "rule", "duplicates", "select", "scale", "influence", "adapters", "step")
    )
    parser.add_argument("--data", nargs="*")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        help="rows, 0 is all of them; for influence a task's in the pool, and those beside it",
    )
    parser.add_argument("--metrics", nargs="*", default=METRICS)
    parser.add_argument("--rules", nargs="*", default=("random", "auto", "typicality", "diversity", "uncertainty"))
    parser.add_argument("--floor", type=float, default=1.0, help="least rows of a class, of its random share")
    parser.add_argument("--out", type=Path, default=Path("pruned-adapters.jsonl"), help="runs of adapters, kept here")
    parser.add_argument("--most", type=int, default=0, help="adapters to train at most in this call; 0 is all")
    parser.add_argument("--steps", type=int, default=0, help="of each adapter; 0 is four epochs of its rows")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS, help="of which adapters learn")
    parser.add_argument("--layers", type=int, default=4, help="upper layers whose gradients tell influence")
    parser.add_argument("--step", choices=_STEPS)
    asked = parser.parse_args()
    names = asked.data or ["trec6", "sst2", "banking77"]
    if asked.what == "features":
        measure_features(names)
    elif asked.what == "prune":
        measure_pruning(names, asked.seeds, asked.sizes or (1000, 0), asked.metrics, asked.floor)
    elif asked.what == "rule":
        measure_rule(names, asked.seeds)
    elif asked.what == "duplicates":
        measure_duplicates(names, asked.seeds)
    elif asked.what == "select":
        measure_selection(asked.data or ["banking77", "clinc150"], asked.seeds, asked.rules)
    elif asked.what == "influence":
        measure_influence(asked.seeds, asked.layers, *(asked.sizes or ()))
    elif asked.what == "adapters":
        measure_adapters(asked.seeds, asked.out, asked.most, asked.steps, asked.methods)
    elif asked.what == "scale":
        measure_scale(asked.sizes or (10_000, 100_000))
    else:
        _step(asked.step, asked.sizes[0])


if __name__ == "__main__":
    main()
