"""What label errors cost an adapter, and what correcting the top of the audit's queue brings back.

    python benchmarks/corrected.py --rows 2000 --flips 0.1 --look 0.1 --seeds 0 1 2 3 4

TREC-6: of `--rows` training rows a share `--flips` gets a label drawn evenly from the others. Adapters learn from the
rows as they were, from the flipped ones, and from the flipped ones after a person looked at the first `--look` of all
rows in the audit's queue and set each to what it was before; beside that, after as many looks at rows drawn evenly,
which is what an audit saves. Measured on the test rows. One JSON line a run, then the means, and the part of the loss
that came back.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from public import load
from rich.console import Console

from adapterhub.base.source import open_base
from adapterhub.cli.train_progress import progress_for
from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.pipeline.audit import BASE, audit
from adapterhub.pipeline.build import build
from adapterhub.registry.store import Registry


def labelled(examples: Sequence[Example], labels: Sequence[str]) -> list[Example]:
    """Return the rows with these labels."""
    return [replace(row, fields={**row.fields, "label": label}) for row, label in zip(examples, labels, strict=True)]


def write(path: Path, examples: Sequence[Example]) -> Path:
    """Write rows, each with its number as its id."""
    rows = ({"id": str(place), "text": row.text, "label": row.label} for place, row in enumerate(examples))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def flip(gold: Sequence[str], names: Sequence[str], share: float, draw: random.Random) -> list[str]:
    """Return the labels, a share of them another one."""
    labels = list(gold)
    for place in draw.sample(range(len(gold)), int(share * len(gold))):
        labels[place] = draw.choice([name for name in names if name != gold[place]])
    return labels


def looked_at(gold: Sequence[str], labels: Sequence[str], places: Sequence[int]) -> list[str]:
    """Return the labels after somebody set these rows right."""
    seen = set(places)
    return [right if place in seen else given for place, (right, given) in enumerate(zip(gold, labels, strict=True))]


def accuracy(train: Path, overrides: Sequence[str]) -> float:
    """Return what an adapter learnt from a file is worth on the test rows."""
    recipe = load("trec6", [f"data.train={train}", *overrides])
    with tempfile.TemporaryDirectory() as scratch:
        result = build(recipe, Registry(Path(scratch)), progress_for(Console(stderr=True)))
    return result.metrics["accuracy"].value


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--flips", type=float, default=0.1)
    parser.add_argument("--look", type=float, default=0.1)
    parser.add_argument("--layers", default="top-8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    recipe, base = load("trec6", []), open_base(BASE)
    everything = list(read_examples(recipe.resolve(recipe.data.train), "classification"))
    found: dict[str, list[float]] = {}
    for seed in options.seeds:
        draw = random.Random(seed)
        examples = draw.sample(everything, min(options.rows, len(everything)))
        gold = [str(row.label) for row in examples]
        labels = flip(gold, sorted(set(gold)), options.flips, draw)
        looks = int(options.look * len(examples))
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            flipped = write(folder / "flipped.jsonl", labelled(examples, labels))
            queue = [int(doubt.id) for doubt in audit(flipped, base, seed=seed).doubts][:looks]
            sides = {
                "as they were": gold,
                "flipped": labels,
                "top of the queue corrected": looked_at(gold, labels, queue),
                "as many drawn rows corrected": looked_at(gold, labels, draw.sample(range(len(gold)), len(queue))),
            }
            for name, side in sides.items():
                started = time.monotonic()
                file = write(folder / "train.jsonl", labelled(examples, side))
                # Validation would say which labels are wrong; nobody who has wrong labels has a right validation split.
                value = accuracy(
                    file, [f"lora.layers={options.layers}", f"training.seed={seed}", "data.validation=null"]
                )
                found.setdefault(name, []).append(100 * value)
                wrong = sum(given != right for given, right in zip(side, gold, strict=True))
                line = {"seed": seed, "rows": name, "wrong": wrong, "accuracy": value}
                print(json.dumps({**line, "seconds": round(time.monotonic() - started)}), flush=True)
    print("\n| rows | by seed | mean |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {', '.join(f'{value:.1f}' for value in values)} | {statistics.mean(values):.1f} |")
    before, after, mended, drawn = (statistics.mean(values) for values in found.values())
    if before > after:
        lost = before - after
        back = [(each - after) / lost for each in (mended, drawn)]
        print(f"\nOf {lost:.1f} points lost the queue's top brings back {back[0]:.0%}, drawn rows {back[1]:.0%}")


if __name__ == "__main__":
    main()
