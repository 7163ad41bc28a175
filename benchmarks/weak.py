"""From no labels to a specialist: rules and prompts, majority vote, label model, and the adapter they train.

    python benchmarks/weak.py trec6 sst2 --rows 2000 --seeds 0 1 2 3 4 --out weak.jsonl

Voters see `--rows` training rows without their labels; gold labels only measure. Rules stand in label_rules.py, prompts
in voters/. For each task: every prompt under every calibration; majority vote and label model over rules, prompts and
both, on training rows and on test rows; adapters (`--layers`) trained on the soft labels of each, and on `--gold` gold
labels of the same rows, over several seeds. A line of JSON a figure goes to --out, and lines that are there
are not measured again, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import label_rules
import numpy as np
from public import load
from rich.console import Console

from adapterhub import AdapterHub
from adapterhub.cli.train_progress import progress_for
from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.labeling.label_model import fit_votes
from adapterhub.labeling.prompts import PromptVoter, read_voters
from adapterhub.labeling.votes import Votes
from adapterhub.pipeline.build import build
from adapterhub.pipeline.voters import cast_votes
from adapterhub.recipe import Recipe
from adapterhub.registry.store import Registry

RULES = {"trec6": label_rules.TREC6, "sst2": label_rules.SST2}
CALIBRATIONS = ("none", "content-free", "batch")


class Log:
    """Figures by what they are of; each is on the disk when it is made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {self._key(json.loads(line)): json.loads(line) for line in lines}

    def has(self, **what: Any) -> bool:
        """Say whether a figure is known."""
        return self._key(what) in self._known

    def add(self, figures: dict[str, Any], **what: Any) -> None:
        """Keep a figure and print it."""
        line = {**what, **figures}
        self._known[self._key(what)] = line
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    @staticmethod
    def _key(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(str(line.get(name)) for name in ("task", "part", "name", "seed"))


def draw(examples: Sequence[Example], count: int) -> list[Example]:
    """Return so many rows, always the same ones."""
    return random.Random(0).sample(list(examples), min(count, len(examples)))


def bare(row: Example) -> Example:
    """Return the row without its label."""
    return Example(row.id, {"text": row.text}, where=row.where)


def accuracy(said: Sequence[str | None], gold: Sequence[str]) -> dict[str, float]:
    """Return the share of rows with a vote, and of these, and of all, that are right."""
    cast = [(s, g) for s, g in zip(said, gold, strict=True) if s is not None]
    right = sum(s == g for s, g in cast)
    return {"coverage": len(cast) / len(gold), "precision": right / max(1, len(cast)), "accuracy": right / len(gold)}


def aggregate(log: Log, task: str, split: str, name: str, votes: Votes, gold: Sequence[str]) -> None:
    """Measure majority vote and the label model on these votes."""
    for model in ("majority", "auto"):
        if log.has(task=task, part=f"{model} {split}", name=name):
            continue
        fit = fit_votes(votes, model)
        best = [votes.labels[each] for each in fit.best]
        right = [b == g for b, g in zip(best, gold, strict=True)]
        covered = fit.covered
        figures = {
            "accuracy": float(np.mean(right)),
            "coverage": float(covered.mean()),
            "on_covered": float(np.mean([r for r, c in zip(right, covered, strict=True) if c])),
            "model": fit.model,
            "differs": float(fit.differs.mean()),
            "merged": fit.merged,
        }
        log.add(figures, task=task, part=f"{model} {split}", name=name)


def vote(
    task: str, log: Log, rows: dict[str, list[Example]], hub: AdapterHub, abstain: Sequence[float]
) -> dict[str, dict[str, list[str | None]]]:
    """Return the columns of all voters by split, after each prompt was measured under each calibration."""
    found: dict[str, dict[str, list[str | None]]] = {}
    for split, examples in rows.items():
        gold = [str(row.label) for row in examples]
        found[split] = label_rules.votes(RULES[task], [row.text for row in examples])
        for name, column in found[split].items():
            if not log.has(task=task, part=f"rule {split}", name=name):
                log.add(accuracy(column, gold), task=task, part=f"rule {split}", name=name)
        for voter in read_voters(Path(__file__).parent / "voters" / f"{task}.yaml").voters:
            assert isinstance(voter, PromptVoter)
            for calibration in CALIBRATIONS:
                asked = voter.model_copy(update={"calibration": calibration})
                started = time.monotonic()
                cast = cast_votes(asked, [bare(row) for row in examples], hub)
                seconds = time.monotonic() - started
                if not log.has(task=task, part=f"{calibration} {split}", name=voter.name):
                    told = {**accuracy(cast.votes, gold), "asked": cast.asked, "seconds": round(seconds, 2)}
                    log.add(told, task=task, part=f"{calibration} {split}", name=voter.name)
            for least in (0.0, *abstain):
                asked = voter.model_copy(update={"abstain_below": least})  # with the calibration it has by default
                cast = cast_votes(asked, [bare(row) for row in examples], hub)
                found[split][_called(voter.name, least)] = list(cast.votes)
                if least and not log.has(task=task, part=f"at {least} {split}", name=voter.name):
                    log.add(accuracy(cast.votes, gold), task=task, part=f"at {least} {split}", name=voter.name)
    return found


def _called(name: str, least: float) -> str:
    return f"{name}@{least}" if least else name


def sides_of(
    task: str, columns: Mapping[str, Sequence[str | None]], abstain: Sequence[float]
) -> dict[str, Mapping[str, Sequence[str | None]]]:
    """Return the columns of rules, of prompts, and of both; the latter two for each least chance of a prompt's vote."""
    rules = {name: column for name, column in columns.items() if name in RULES[task]}
    found: dict[str, Mapping[str, Sequence[str | None]]] = {"rules": rules}
    for least in (0.0, *abstain):
        ending = _called("", least)
        prompts = {
            name: column
            for name, column in columns.items()
            if name not in rules and (name.endswith(ending) if least else "@" not in name)
        }
        found[_called("prompts", least)] = prompts
        found[_called("both", least)] = {**rules, **prompts}
    return found


def write(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def surest(best: np.ndarray, sure: np.ndarray, share: float) -> set[int]:
    """Return the places of the rows, this share of each label's, of whose label the model is surest."""
    kept: set[int] = set()
    for label in np.unique(best):
        places = np.flatnonzero(best == label)
        kept |= set(places[np.argsort(-sure[places], kind="stable")][: round(share * len(places))].tolist())
    return kept


def soft_rows(examples: Sequence[Example], votes: Votes, share: float = 1.0) -> Iterator[dict[str, Any]]:
    """Yield covered rows with the label model's probabilities; of each label the surest so large a share."""
    fit = fit_votes(votes, "auto")
    kept = surest(np.asarray(fit.best), np.where(fit.covered, np.asarray(fit.probs).max(1), -1.0), share)
    for place, row in enumerate(examples):
        if fit.covered[place] and place in kept:
            probs = dict(zip(votes.labels, map(float, fit.probs[place]), strict=True))
            yield {"text": row.text, "label": votes.labels[fit.best[place]], "probs": probs}


def train(log: Log, task: str, part: str, seed: int, folder: Path, recipe: Recipe) -> None:
    """Train one adapter and measure it on the test rows."""
    started = time.monotonic()
    result = build(recipe, Registry(folder / "registry"), progress_for(Console(stderr=True)))
    told = {name: metric.to_record() for name, metric in result.metrics.items()}
    seconds = round(time.monotonic() - started)
    cost = answer_seconds(recipe, folder / "registry")
    log.add({**told["accuracy"], "seconds": seconds, "seconds_a_row": cost}, task=task, part=part, seed=seed)


def answer_seconds(recipe: Recipe, registry: Path) -> float:
    """Return what one row costs once the adapter is deployed: 100 test rows asked at once, the base being loaded."""
    assert recipe.data.test is not None
    texts = [row.text for row in read_examples(recipe.resolve(recipe.data.test), "classification")][:100]
    with AdapterHub(recipe.base_name, registry=registry) as hub:
        hub.predict(recipe.task, texts[:20])
        started = time.monotonic()
        hub.predict(recipe.task, texts)
        return round((time.monotonic() - started) / len(texts), 4)


def adapters(
    log: Log,
    task: str,
    train_rows: list[Example],
    labels: Sequence[str],
    votes: Mapping[str, Votes],
    test: Path,
    options: Any,
) -> None:
    """Train on the soft labels of each kind of voters, and on gold ones."""
    common = [f"lora.layers={options.layers}", f"data.test={test}", "data.validation=null"]
    common.append(f"labels={json.dumps(labels)}")
    passes = 3 * len(train_rows) // 32
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            parts: dict[str, Iterator[dict[str, Any]]] = {}
            for name in options.soft:
                parts[f"adapter on soft labels of {name}"] = soft_rows(train_rows, votes[name])
            for name, share in product(options.soft, options.surest):
                parts[f"adapter on the surest {share:.0%} of {name}"] = soft_rows(train_rows, votes[name], share)
            order = random.Random(seed).sample(train_rows, len(train_rows))
            for count in options.gold:
                parts[f"adapter on {count} gold"] = ({"text": r.text, "label": r.label} for r in order[:count])
            for part, rows in parts.items():
                if log.has(task=task, part=part, seed=seed):
                    continue
                file = write(folder / "train.jsonl", rows)
                steps = passes
                if "gold" in part:  # few rows are passed over more often, so that no size is cut short
                    steps = max(options.gold_steps or passes, 3 * sum(1 for _ in file.open()) // 32)
                more = [f"data.train={file}", f"training.seed={seed}", f"training.steps={steps}"]
                train(log, task, part, seed, folder, load(task, [*common, *more]))


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["trec6", "sst2"])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--soft", nargs="*", default=["rules", "prompts", "both"], help="voters to learn from")
    parser.add_argument(
        "--surest", type=float, nargs="*", default=[], help="shares of those labels to learn from alone"
    )
    parser.add_argument("--gold", type=int, nargs="*", default=[50, 100, 200, 400, 800, 2000])
    parser.add_argument(
        "--gold-steps", type=int, default=0, help="least steps on gold labels; 0 is as many as on soft ones"
    )
    parser.add_argument("--abstain", type=float, nargs="*", default=[], help="least chances of a prompt's vote to try")
    parser.add_argument("--layers", default="top-8")
    parser.add_argument("--no-adapters", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("weak.jsonl"))
    options = parser.parse_args()
    log = Log(options.out)
    for task in options.tasks:
        recipe = load(task, [])
        assert recipe.data.test is not None
        sources = {"train": (recipe.data.train, options.rows), "test": (recipe.data.test, options.test_rows)}
        rows = {
            split: draw(list(read_examples(recipe.resolve(source), "classification")), count)
            for split, (source, count) in sources.items()
        }
        labels = sorted({str(row.label) for row in rows["train"]})
        columns: dict[str, dict[str, list[str | None]]] = {}
        if options.soft or options.no_adapters:  # gold labels alone ask no voters
            with AdapterHub(recipe.base_name, registry=tempfile.gettempdir()) as hub:
                columns = vote(task, log, rows, hub, options.abstain)
        votes: dict[str, dict[str, Votes]] = {}
        for split, found in columns.items():
            gold = [str(row.label) for row in rows[split]]
            ids = [row.id for row in rows[split]]
            sides = sides_of(task, found, options.abstain)
            votes[split] = {name: Votes.of(dict(chosen), ids, labels) for name, chosen in sides.items()}
            for name, each in votes[split].items():
                aggregate(log, task, split, name, each, gold)
        if not options.no_adapters:
            with tempfile.TemporaryDirectory() as scratch:
                told = ({"text": row.text, "label": row.label} for row in rows["test"])
                file = write(Path(scratch) / "test.jsonl", told)
                adapters(log, task, rows["train"], labels, votes.get("train", {}), file, options)


if __name__ == "__main__":
    main()
