"""A recipe file with its data files and a tiny base beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import make_tiny_base
from tests.training.jobs import toy_rows

QUICK = {"epochs": 4, "batch_size": 16, "learning_rate": 5e-3}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, name: str = "toy", **changes: Any) -> Path:
    """Write a recipe that learns colours on a tiny Llama, `changes` over its keys; None removes a key."""
    if not (folder / "base").exists():
        make_tiny_base(folder / "base")
        for split, count, seed in (("train", 80, 0), ("validation", 20, 1), ("test", 30, 2)):
            write_rows(folder / f"{split}.jsonl", [dict(row.fields) for row in toy_rows(count, seed)])
    record = {
        "task": name,
        "base": "./base",
        "kind": "classification",
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
        "training": QUICK,
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in record.items() if value is not None}))
    return path
