"""Where a training keeps its checkpoints and journals, so that it can be taken up again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from adapterhub.errors import UsageError
from adapterhub.folders import cache_root

from .prepare import Prepared


def run_folder(jobs: Sequence[Prepared], root: Path | None = None) -> Path:
    """Return the folder of a training: the same for the same recipes, rows, base and versions to begin at."""
    said = [
        {
            "recipe": each.recipe.to_record(),
            "data": each.splits.to_record(),
            "base": each.base.fingerprint,
            "init": None if each.init is None else each.init.digest,
        }
        for each in jobs
    ]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    first = jobs[0].recipe.task
    name = first if len(jobs) == 1 else f"{first}-and-{len(jobs) - 1}-more"
    return (cache_root() / "runs" if root is None else root) / f"{name}-{key}"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder. Raises UsageError where another process trains the same right now."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another process is training exactly this right now (it holds {folder / '.lock'}); "
            "wait for it, or change something, such as --set training.seed=1"
        ) from error
    try:
        yield
    finally:
        lock.release()
