"""Influence: three tasks in one pool, which rows are the target's? Run as `python benchmarks/curation.py influence`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
from public import DATA

from adapterhub.base.feature_store import DEFAULT_BASE, stored_features
from adapterhub.base.source import open_base
from adapterhub.curation.clusters import directions
from adapterhub.curation.influence import influence
from adapterhub.pipeline.influence import DEFAULT_DECODER
from adapterhub.training.gradient_store import Adapter, stored_gradients

TASKS = ("trec6", "sst2", "subj")
# Rows of a target at most.
TARGET = 32
SHARE = 0.05


def measure_influence(seeds: int, layers: int, pool: int = 500, beside: int = 100) -> None:
    """Print the share of the target's task among the 5% of the pool that each way ranks first.

    Each seed draws `pool` rows of a task for the pool, and the target from `beside` others, all from the same rows of
    the training split. Answers are told as they are, and as letters (A, B, …), so that their words do not say which
    task a row is of.
    """
    texts, answers, task = _rows(pool + beside)
    print(f"| target, answers | random | {DEFAULT_BASE}, text | text and answer | gradients | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for letters in (False, True):
        told = _letters(answers, task) if letters else answers
        vectors = {
            "text": _features(texts),
            "both": _features([f"{text} {answer}" for text, answer in zip(texts, told, strict=True)]),
        }
        started = time.process_time()
        rows = zip(texts, told, strict=True)
        vectors["gradients"] = stored_gradients(open_base(DEFAULT_DECODER), rows, Adapter(layers))
        seconds = time.process_time() - started
        for number, name in enumerate(TASKS):
            draws = [_precisions(vectors, told, task, number, seed, pool) for seed in range(seeds)]
            cells = [_cell([draw[way] for draw in draws]) for way in ("random", *vectors)]
            how = "letters" if letters else "words"
            print(f"| {name}, {how} | " + " | ".join(cells) + f" | {seconds:.0f} |", flush=True)


def _rows(count: int) -> tuple[list[str], list[str], np.ndarray]:
    texts, answers = [], []
    for name in TASKS:
        with (DATA / name / "train.jsonl").open() as file:
            rows = [json.loads(line) for line in file]
        for at in np.random.default_rng(0).permutation(len(rows))[:count]:
            texts.append(rows[at]["text"])
            answers.append(rows[at]["label"])
    return texts, answers, np.repeat(np.arange(len(TASKS)), count)


def _letters(answers: Sequence[str], task: np.ndarray) -> list[str]:
    names = [sorted({answer for answer, own in zip(answers, task, strict=True) if own == each}) for each in range(3)]
    return [chr(65 + names[own].index(answer)) for answer, own in zip(answers, task, strict=True)]


def _features(texts: Sequence[str]) -> np.ndarray:
    return directions(stored_features(open_base(DEFAULT_BASE), texts))


def _precisions(
    vectors: dict[str, np.ndarray], answers: Sequence[str], task: np.ndarray, wanted: int, seed: int, size: int
) -> dict[str, float]:
    """Draw a pool and a target, and return the precision of each way, all of them by the nearest answer's mean."""
    draw = np.random.default_rng(seed)
    pool, target = [], np.empty(0, np.int64)
    for each in range(len(TASKS)):
        order = draw.permutation(np.flatnonzero(task == each))
        pool.append(order[:size])
        if each == wanted:
            target = order[size : size + TARGET]
    rows = np.concatenate(pool)
    count = round(SHARE * len(rows))
    groups = [answers[row] for row in target]
    found = {"random": float((task[draw.permutation(rows)[:count]] == wanted).mean())}
    for way, given in vectors.items():
        first = rows[np.argsort(-influence(given[rows], given[target], groups), kind="stable")[:count]]
        found[way] = float((task[first] == wanted).mean())
    return found


def _cell(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1%} ± {np.std(values, ddof=1):.1%}" if len(values) > 1 else f"{values[0]:.1%}"
