"""Three rounds of feedback on a task whose inputs change: what each round of `improve` brings.

    python benchmarks/drift.py --seeds 0 1 2 3 4

CLINC150 by its ten domains (banking, travel, …). At first a domain is three of its fifteen intents; each round three
more come up in what users send. A round: the version that `prod` means answers `--traffic` inputs, of all intents seen
so far; for those that it got wrong, and for no others, a user says the right domain; `adapterhub improve` does the
rest and moves `prod` or does not, on test rows of the start (its owner's) and feedback that it held out. After each
round `prod` answers other test rows, of the intents seen so far and of all that will come up; the first version does so
too. Nothing is looked at or set by hand. One JSON line a round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from public import DATA, ROOT
from rich.console import Console

from adapterhub import AdapterHub
from adapterhub.cli.train_progress import progress_for
from adapterhub.data.feedback import Feedback, FeedbackWriter, read_feedback
from adapterhub.pipeline.improve import improve
from adapterhub.recipe import Recipe, load_recipe
from adapterhub.registry.store import Registry

ROUNDS, STEP = 3, 3
TASK = "clinc150-domains"
Row = dict[str, str]


def stages(split: str) -> list[list[Row]]:
    """Return the rows of a split by the round in which their intent comes up (0 is the start)."""
    domains: dict[str, list[str]] = json.loads((DATA / "clinc150" / "domains.json").read_text())
    place = {
        intent: (domain, turn // STEP) for domain, intents in domains.items() for turn, intent in enumerate(intents)
    }
    found: list[list[Row]] = [[] for _ in range(ROUNDS + 1)]
    for line in (DATA / "clinc150" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        domain, turn = place[row["label"]]
        if turn <= ROUNDS:
            found[turn].append({"text": row["text"], "label": domain})
    return found


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(recipe: Recipe, registry: Registry, ref: str, rows: Sequence[Row]) -> list[str | None]:
    """Return the label that a version gives each row."""
    with AdapterHub(recipe.base_name, registry=registry.root) as hub:
        return [answer.label for answer in hub.predict(ref, [row["text"] for row in rows])]


def right(said: Sequence[str | None], rows: Sequence[Row]) -> float:
    """Return the share that is right."""
    return sum(label == row["label"] for label, row in zip(said, rows, strict=True)) / len(rows)


def complain(file: Path, rows: Sequence[Row], said: Sequence[str | None], turn: int) -> int:
    """Write what users say of the wrong answers, and return how many those are."""
    writer, wrong = FeedbackWriter(file), 0
    for place, (row, label) in enumerate(zip(rows, said, strict=True)):
        if label != row["label"]:
            wrong += 1
            answer: dict[str, Any] = {"id": f"clsf-{turn}-{place}", "index": 0, "at": "2026-01-01T00:00:00Z"}
            answer |= {"task": TASK, "model": TASK, "digest": None, "kind": "classification"}
            given = {"input": {"fields": {"text": row["text"]}}, "predicted": {"label": label}}
            writer.add(Feedback(**answer, **given, right={"label": row["label"]}))
    return wrong


def run(seed: int, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Do all rounds of one seed."""
    draw = random.Random(seed)
    train, test = stages("train"), stages("test")
    for rows in train:
        draw.shuffle(rows)
    own = random.Random(0).sample(stages("validation")[0], options.test_rows)
    test = [random.Random(0).sample(rows, options.test_rows) for rows in test]
    start, unseen = train[0][: options.rows], [*train[0][options.rows :]]
    recipe = load_recipe(
        ROOT / "recipes" / "benchmarks" / "clinc150.yaml",
        [
            f"task={TASK}",
            f"labels={json.dumps(sorted({row['label'] for row in train[0]}))}",
            f"data.train={write(folder / 'train.jsonl', start)}",
            "data.validation=null",
            "data.out_of_scope=null",
            "calibration.reject_below=null",
            f"data.test={write(folder / 'test.jsonl', own)}",
            f"lora.layers={options.layers}",
            "training.epochs=3",
            f"training.seed={seed}",
        ],
    )
    registry, progress = Registry(folder / "registry"), progress_for(Console(stderr=True))
    feedback = folder / "feedback.jsonl"
    told: list[dict[str, Any]] = []
    first = improve(recipe, [], registry, progress).new.published.ref
    everything = [row for rows in test for row in rows]
    for turn in range(ROUNDS + 1):
        started = time.monotonic()
        outcome: dict[str, Any] = {}
        if turn:
            unseen += train[turn]
            traffic, unseen = (mixed := draw.sample(unseen, len(unseen)))[: options.traffic], mixed[options.traffic :]
            wrong = complain(feedback, traffic, answers(recipe, registry, f"{TASK}@prod", traffic), turn)
            improved = improve(recipe, list(read_feedback(feedback)), registry, progress)
            outcome = {"complaints": wrong, "promoted": improved.promoted, "why": improved.why}
        seen = [row for rows in test[: turn + 1] for row in rows]
        ours, old = (answers(recipe, registry, ref, everything) for ref in (f"{TASK}@prod", first))
        line = {"seed": seed, "round": turn, **outcome, "prod, seen so far": right(ours[: len(seen)], seen)}
        line |= {"first, seen so far": right(old[: len(seen)], seen), "prod, all": right(ours, everything)}
        told.append({**line, "first, all": right(old, everything), "seconds": round(time.monotonic() - started)})
        print(json.dumps(told[-1]), flush=True)
    return told


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600, help="training rows of the start")
    parser.add_argument("--traffic", type=int, default=300, help="inputs that users send in a round")
    parser.add_argument("--test-rows", type=int, default=200, help="test rows of the intents of each round")
    parser.add_argument("--layers", default="top-8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            lines += run(seed, options, Path(scratch))
    figures = ("prod, seen so far", "first, seen so far", "prod, all", "first, all")
    print(f"\n| round | {' | '.join(figures)} |", "|---" * (1 + len(figures)) + "|", sep="\n")
    for turn in range(ROUNDS + 1):
        runs = [line for line in lines if line["round"] == turn]
        cells = [f"{100 * statistics.mean(run[name] for run in runs):.1f}" for name in figures]
        print(f"| {turn} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
