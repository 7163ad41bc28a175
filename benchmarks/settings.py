"""What the defaults of training rest on: how many layers to adapt, at what learning rate and rank.

    python benchmarks/settings.py layers --tasks trec6 sst2 banking77 restaurant8k --rows 1500 --seeds 0 1 2
    python benchmarks/settings.py rates --tasks trec6 sst2 banking77 --rows 1000 --seeds 0

Each run trains a recipe of `recipes/benchmarks/` with one thing changed, through the code of `adapterhub train`, on
the same `--rows` training rows (drawn once, as 300 validation rows are), and is measured on the same `--test-rows` rows
of the test split, never on those that chose its weights. `layers` adapts all layers, or the upper 15, 8 and 4 over a
trunk that is computed once and kept; `rates` varies the learning rate at the default rank and the rank at the default
rate, with all layers. One JSON line a run, then a table. Data: $ADAPTERHUB_DATA, else ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from public import DATA, load
from rich.console import Console

from adapterhub.cli.train_progress import progress_for
from adapterhub.pipeline.build import build
from adapterhub.registry.store import Registry

METRICS = {"classification": "accuracy", "generation": "exact_match"}


def draw(task: str, split: str, count: int, folder: Path) -> str:
    """Write `count` rows of a split, always the same ones, and return the override that names them."""
    lines = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = random.Random(0).sample(lines, min(count, len(lines)))
    file = folder / f"{task}-{split}.jsonl"
    file.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return f"data.{split}={file}"


def changes(part: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each setting and the overrides that make it."""
    if part == "layers":
        yield "all", []
        for top in (15, 8, 4):
            yield f"top-{top}", [f"lora.layers=top-{top}"]
        return
    for rate in ("3e-4", "1e-3", "3e-3"):
        yield f"lr {rate}, rank 8", [f"training.learning_rate={rate}"]
    for rank in (2, 32):
        yield f"lr 1e-3, rank {rank}", [f"lora.rank={rank}", f"lora.alpha={2 * rank}"]


def run(task: str, overrides: Sequence[str]) -> dict[str, float]:
    """Train one setting and return its metric, its speed and the seconds that all of it took."""
    recipe = load(task, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        result = build(recipe, Registry(Path(scratch)), progress_for(Console(stderr=True)))
        seconds = time.monotonic() - started
    return {
        "value": result.metrics[METRICS[recipe.kind]].value,
        "examples_per_second": round(result.training.examples_per_second, 1),
        "seconds": round(seconds),
    }


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["layers", "rates"])
    parser.add_argument("--tasks", nargs="+", default=["trec6", "sst2", "banking77"])
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    table = ["| task | setting | by seed | mean | examples/s | seconds a run |", "|---|---|---|---|---|---|"]
    for task in options.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            sizes = {"train": options.rows, "validation": 300, "test": options.test_rows}
            rows = [draw(task, split, count, Path(scratch)) for split, count in sizes.items()]
            found: dict[str, list[dict[str, float]]] = {name: [] for name, _ in changes(options.part)}
            for seed in options.seeds:
                for name, overrides in changes(options.part):
                    found[name].append(run(task, [*rows, f"training.seed={seed}", *overrides]))
                    line = {"part": options.part, "task": task, "setting": name, "seed": seed, **found[name][-1]}
                    print(json.dumps(line), flush=True)
        for name, runs in found.items():
            values = [100 * one["value"] for one in runs]
            speed = statistics.median(one["examples_per_second"] for one in runs)
            spent = statistics.median(one["seconds"] for one in runs)
            by_seed = ", ".join(f"{value:.1f}" for value in values)
            table.append(f"| {task} | {name} | {by_seed} | {statistics.mean(values):.1f} | {speed} | {spent:.0f} |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
