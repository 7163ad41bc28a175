"""Rows and features for tests of curation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.curation.rows import Rows


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def rows_of(folder: Path, rows: Iterable[dict[str, Any]], **options: Any) -> Rows:
    return Rows.read([write(folder / "rows.jsonl", rows)], **options)


def clouds(rows: int, classes: int = 3, *, seed: int = 0, apart: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 [rows, 16] and labels: one cloud a class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = np.eye(16)[:classes] * apart
    return (draw.normal(size=(rows, 16)) + centres[labels]).astype(np.float32), labels


def flipped(labels: np.ndarray, classes: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is another one, and which these are."""
    draw = np.random.default_rng(seed)
    wrong = draw.random(len(labels)) < share
    moved = (labels + draw.integers(1, classes, len(labels))) % classes
    return np.where(wrong, moved, labels), wrong
