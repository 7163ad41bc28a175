"""Accuracy of the benchmark recipes, with stock PEFT and the bare base beside it on the same test rows.

    python benchmarks/accuracy.py trec6 --seeds 0 1 2 --stock --few-shot 8
    python benchmarks/accuracy.py trec6-minilm restaurant8k

Trains through the same code as `adapterhub train`, into a scratch registry. Data: $ADAPTERHUB_DATA, else
../shared/data. `--stock` also trains classification recipes with transformers' Trainer and PEFT in float32, on all
linear layers, with the recipe's length, batch size, rank, alpha, dropout, learning rate, schedule and seed; it keeps
its last weights, where ours keep the best by validation. The base is asked as a person would ask it, greedily: for a
label by naming the labels, for slots by naming the JSON keys; an answer counts if the first label it names is right,
or if it is the right JSON. `--few-shot K` also asks it with K training rows answered before, in the same chat. Where a
recipe has rows out of scope (clinc150), the figures of rejecting them stand among the metrics.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from public import PublicTask, load
from rich.console import Console
from worker import WORKERS, Worker

from adapterhub import AdapterHub
from adapterhub.cli.train_progress import progress_for
from adapterhub.data.example import Example
from adapterhub.metrics import evaluate
from adapterhub.pipeline.build import build
from adapterhub.pipeline.splits import Splits, read_splits
from adapterhub.recipe import Recipe
from adapterhub.registry.store import Registry


def question(recipe: Recipe, example: Example, labels: Sequence[str]) -> str:
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


def gold(recipe: Recipe, example: Example) -> str:
    """Return the right answer."""
    return str(example.label if recipe.kind == "classification" else example.completion)


def chat(recipe: Recipe, example: Example, labels: Sequence[str], shots: Sequence[Example]) -> list[dict[str, str]]:
    """Return the turns that ask for one row after the answered `shots`; only the first explains what is wanted."""
    turns = []
    for asked in (*shots, example):
        text = f"{'Text' if recipe.kind == 'classification' else 'Message'}: {asked.text}"
        turns.append({"role": "user", "content": text if turns else question(recipe, asked, labels)})
        turns.append({"role": "assistant", "content": gold(recipe, asked)})
    return turns[:-1]


def choose_shots(recipe: Recipe, splits: Splits, count: int) -> list[Example]:
    """Return `count` training rows, always the same ones: of each label as many, as far as they reach."""
    draw = random.Random(0)
    order = draw.sample(splits.train, len(splits.train))
    if recipe.kind != "classification":
        return order[:count]
    by_label: dict[str, list[Example]] = {label: [] for label in draw.sample(splits.labels, len(splits.labels))}
    for example in order:
        by_label[str(example.label)].append(example)
    turns = max(map(len, by_label.values()))
    ranked = [rows[turn] for turn in range(turns) for rows in by_label.values() if turn < len(rows)]
    return draw.sample(ranked[:count], min(count, len(ranked)))


def read_answer(recipe: Recipe, text: str, labels: Sequence[str]) -> str:
    """Return the label an answer names first, or the text itself; empty where no label is named."""
    if recipe.kind != "classification":
        return text.strip()
    said = text.lower().replace("_", " ")
    places = {label: said.find(label.lower().replace("_", " ")) for label in labels}
    named = [label for label in labels if places[label] >= 0]
    return min(named, key=lambda label: (places[label], -len(label)), default="")


def ask_base(recipe: Recipe, splits: Splits, rows: int, shots: Sequence[Example]) -> dict[str, Any]:
    """Return the bare base's metrics on `rows` test rows, always the same ones, and how many they were."""
    # Not the first rows: some files are sorted by label.
    examples = random.Random(0).sample(splits.test, min(rows, len(splits.test)))
    with AdapterHub(recipe.base_name) as hub:
        target = hub.target(recipe.base_name)
        asked = ({"messages": chat(recipe, example, splits.labels, shots)} for example in examples)
        limit = 24 if recipe.kind == "classification" else 48
        answers = hub.answers(target, asked, max_tokens=limit)
        said = [read_answer(recipe, answer.completion or "", splits.labels) for answer in answers]
    metrics = evaluate(recipe.kind, [gold(recipe, example) for example in examples], said, splits.labels)
    return {"rows": len(examples), "metrics": {name: metric.to_record() for name, metric in metrics.items()}}


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
    print_mean({"recipe": name, "seeds": seeds}, runs)


def train_stock(name: str, seeds: list[int], overrides: list[str]) -> None:
    """Train a recipe with the Trainer and PEFT once a seed, in a process of its own; print each run and the mean."""
    runs = []
    for seed in seeds:
        task = PublicTask.open(name, [*overrides, f"training.seed={seed}"])
        started = time.monotonic()
        answer = ask_stock(task)
        labels = task.spec.labels
        predicted = [labels[index] for index in answer["predicted"]]
        found = evaluate(task.recipe.kind, [gold(task.recipe, row) for row in task.splits.test], predicted, labels)
        line = {
            "recipe": name,
            "stock": True,
            "seed": seed,
            "seconds": round(time.monotonic() - started),
            "metrics": {metric: value.to_record() for metric, value in found.items()},
            "examples_per_second": round(answer["examples"] / answer["seconds"], 1),
            "tokens_per_second": round(answer["tokens"] / answer["seconds"], 1),
            "peak_memory_bytes": answer["peak_memory_bytes"],
        }
        print(json.dumps(line), flush=True)
        runs.append({metric: value.value for metric, value in found.items()})
    print_mean({"recipe": name, "stock": True, "seeds": seeds}, runs)


def ask_stock(task: PublicTask) -> dict[str, Any]:
    """Return what workers/train_stock.py answers to a whole recipe, with its predictions for the test rows."""
    lora, training = task.recipe.lora, task.recipe.training
    length = {"max_steps": training.steps} if training.steps else {"num_train_epochs": training.epochs}
    settings = {
        **length,
        "per_device_train_batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if training.schedule == "constant" else training.schedule,
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
    }
    arguments = {"model": task.base.path, "labels": len(task.spec.labels), "seed": training.seed}
    arguments |= {"rank": lora.rank, "alpha": lora.alpha, "dropout": lora.dropout}
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(WORKERS / "train_stock.py"), *words]
        worker = Worker("stock", command, Path(scratch) / "stock.log")
        try:
            rows, predict = task.records(task.splits.train), task.records(task.splits.test)
            return worker.ask({"rows": rows, "settings": settings, "predict": predict})
        finally:
            worker.close()


def print_mean(about: dict[str, Any], runs: Sequence[dict[str, float]]) -> None:
    """Print the mean of each metric over runs."""
    means = {metric: round(statistics.mean(run[metric] for run in runs), 4) for metric in runs[0]}
    print(json.dumps({**about, "mean": means}), flush=True)


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["trec6", "trec6-minilm", "restaurant8k"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--stock", action="store_true", help="train classification recipes with stock PEFT too")
    parser.add_argument("--stock-only", action="store_true", help="train classification recipes with stock PEFT alone")
    parser.add_argument("--few-shot", type=int, metavar="K", help="also ask the base with K answered training rows")
    parser.add_argument("--no-base", action="store_true", help="leave the zero-shot base out")
    parser.add_argument("--base-only", action="store_true", help="ask the zero-shot base alone, train nothing")
    parser.add_argument("--base-rows", type=int, default=500, help="test rows the zero-shot base is asked for")
    options = parser.parse_args()
    for name in options.recipes:
        recipe = load(name, options.overrides)
        if not options.base_only:
            if not options.stock_only:
                train(name, options.seeds, options.overrides)
            if (options.stock or options.stock_only) and recipe.kind == "classification":
                train_stock(name, options.seeds, options.overrides)
        if not options.no_base and "minilm" not in name:
            splits = read_splits(recipe)
            for count in (0, *([options.few_shot] if options.few_shot else [])):
                shots = choose_shots(recipe, splits, count)
                asked = ask_base(recipe, splits, options.base_rows, shots)
                print(json.dumps({"recipe": name, "base": recipe.base, "shots": len(shots), **asked}), flush=True)


if __name__ == "__main__":
    main()
