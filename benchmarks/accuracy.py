"""Accuracy of the benchmark recipes, with the zero-shot base beside it on the same test rows.

    python benchmarks/accuracy.py trec6 --seeds 0 1 2
    python benchmarks/accuracy.py trec6-minilm restaurant8k

Trains through the same code as `adapterhub train`, into a scratch registry. Data: $ADAPTERHUB_DATA, else
../shared/data. The base is asked as a person would ask it, greedily: for a label by naming the labels, for slots by
naming the JSON keys; an answer counts if the first label it names is right, or if it is the right JSON. Where a
recipe has rows out of scope (clinc150), the figures of rejecting them stand among the metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

from rich.console import Console

from adapterhub import AdapterHub
from adapterhub.cli.train_progress import progress_for
from adapterhub.data.example import Example, collect_labels
from adapterhub.data.files import read_examples
from adapterhub.metrics import evaluate
from adapterhub.pipeline.build import build
from adapterhub.recipe import Recipe, load_recipe
from adapterhub.registry.store import Registry

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ADAPTERHUB_DATA", ROOT.parent / "shared" / "data"))


def load(name: str, overrides: list[str]) -> Recipe:
    """Read a benchmark recipe with its data where $ADAPTERHUB_DATA says."""
    folder = DATA / name.split("-")[0]
    data = [f"data.{split}={folder / f'{split}.jsonl'}" for split in ("train", "validation", "test")]
    outside = load_recipe(ROOT / "recipes" / "benchmarks" / f"{name}.yaml").data.outside()
    data += [f"data.out_of_scope.{split}={folder / f'oos_{split}.jsonl'}" for split, _ in outside]
    return load_recipe(ROOT / "recipes" / "benchmarks" / f"{name}.yaml", [*data, *overrides])


def question(recipe: Recipe, example: Example, labels: tuple[str, ...]) -> str:
    """Return what to ask the bare base."""
    if recipe.kind == "classification":
        return (
            f"Classify the text into exactly one of these categories: {', '.join(labels)}.\n"
            f"Text: {example.text}\nAnswer with the category only."
        )
    keys = "date, time, people, first_name, last_name"
    return (
        f"Extract the slots ({keys}) that the guest's message mentions, as a JSON object; answer {{}} if none is.\n"
        f"Message: {example.text}\nAnswer with the JSON only."
    )


def read_answer(recipe: Recipe, text: str, labels: tuple[str, ...]) -> str:
    """Return the label an answer names first, or the text itself; empty where no label is named."""
    if recipe.kind != "classification":
        return text.strip()
    said = text.lower()
    places = {label: said.find(label.lower().replace("_", " ")) for label in labels}
    named = [label for label in labels if places[label] >= 0]
    return min(named, key=lambda label: (places[label], -len(label)), default="")


def zero_shot(recipe: Recipe, rows: int) -> dict[str, float]:
    """Return the bare base's metrics on the first `rows` test rows."""
    assert recipe.data.test is not None
    examples = list(islice(read_examples(recipe.resolve(recipe.data.test), recipe.kind), rows))
    labels = collect_labels(examples, recipe.kind)
    with AdapterHub(recipe.base) as hub:
        target = hub.target(recipe.base)
        asked = ({"prompt": question(recipe, example, labels)} for example in examples)
        limit = 24 if recipe.kind == "classification" else 48
        said = [read_answer(recipe, a.completion or "", labels) for a in hub.answers(target, asked, max_tokens=limit)]
    gold = [example.label if recipe.kind == "classification" else example.completion for example in examples]
    return {name: metric.value for name, metric in evaluate(recipe.kind, gold, said, labels).items()}


def train(name: str, seeds: list[int], overrides: list[str]) -> None:
    """Train a recipe once a seed, print each run and the mean."""
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            started = time.monotonic()
            recipe = load(name, [*overrides, f"training.seed={seed}"])
            result = build(recipe, Registry(Path(scratch)), progress_for(Console(stderr=True)))
        record = result.to_record()
        runs.append({k: v["value"] for k, v in record["metrics"].items()})
        line = {
            "recipe": name,
            "seed": seed,
            "seconds": round(time.monotonic() - started),
            "metrics": record["metrics"],
        }
        if (calibration := result.training.spec.calibration) is not None:
            line |= {"temperature": calibration.temperature, "reject_below": calibration.reject_below}
        for key in ("examples_per_second", "tokens_per_second", "peak_memory_bytes"):
            line[key] = round(record[key], 1)
        print(json.dumps(line), flush=True)
    means = {metric: round(statistics.mean(run[metric] for run in runs), 4) for metric in runs[0]}
    print(json.dumps({"recipe": name, "seeds": seeds, "mean": means}), flush=True)


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["trec6", "trec6-minilm", "restaurant8k"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--no-base", action="store_true", help="leave the zero-shot base out")
    parser.add_argument("--base-only", action="store_true", help="ask the zero-shot base alone, train nothing")
    parser.add_argument("--base-rows", type=int, default=500, help="test rows the zero-shot base is asked for")
    options = parser.parse_args()
    for name in options.recipes:
        if not options.base_only:
            train(name, options.seeds, options.overrides)
        if not options.no_base and "minilm" not in name:
            base = zero_shot(load(name, []), options.base_rows)
            print(json.dumps({"recipe": name, "zero_shot_base": base, "rows": options.base_rows}), flush=True)


if __name__ == "__main__":
    main()
