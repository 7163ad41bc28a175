"""Adapters that were trained on the way to something else, kept so that another way need not train them again.

A forecast's ladder and a sweep train the same where they have the same settings, rows and seed: a sweep's budget is a
rung. Each adapter lies in a folder named by all that makes it, with what validation said of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.folders import cache_root
from adapterhub.registry.disk import TEMPORARY, remove, temporary_name
from adapterhub.registry.provenance import split_record

if TYPE_CHECKING:
    from adapterhub.training.job import Evaluation, TrainingJob
    from adapterhub.training.train import Trained

_RESULT = "result.json"
# Adapters of least recent use go when all of them together take more.
_MOST_BYTES = 2 << 30
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class KeptRun:
    """An adapter's folder, what validation said of it at best (None without validation), and how long it took."""

    folder: Path
    best: Evaluation | None
    seconds: float


class TrainedRuns:
    """The adapters that are kept, by job. Several processes may use them at once."""

    def __init__(self, root: Path | None = None) -> None:
        """Keep them in `root`, else in the cache folder."""
        self._root = cache_root() / "trained" if root is None else root

    def get(self, job: TrainingJob) -> KeptRun | None:
        """Return what came of a job, None where it is not known."""
        from adapterhub.training.job import Evaluation

        folder = self._folder(job)
        try:
            said = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
            os.utime(folder)
            best = None if said["best"] is None else Evaluation(**said["best"])
            return KeptRun(folder, best, float(said["seconds"]))
        except FileNotFoundError:  # never trained, or gone to make room
            return None
        except (ValueError, KeyError, TypeError):  # a power cut came before its bytes were on the disk
            remove(folder)
            return None

    def put(self, job: TrainingJob, trained: Trained) -> KeptRun:
        """Keep what came of a job."""
        folder, result = self._folder(job), trained.result
        temporary = self._root / temporary_name()
        temporary.mkdir(parents=True)
        trained.write(temporary)
        best = None if result.best is None else asdict(result.best)
        (temporary / _RESULT).write_text(json.dumps({"best": best, "seconds": result.seconds}), encoding="utf-8")
        try:
            temporary.replace(folder)
        except OSError:  # another process was as quick
            remove(temporary)
        return KeptRun(folder, result.best, result.seconds)

    def make_room(self, wanted: Collection[Path] = ()) -> None:
        """Remove adapters used longest ago, but none that is wanted, while all together take too much.

        What a killed process left half written goes too.
        """
        for folder in self._root.glob(f"{TEMPORARY}*"):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                    remove(folder)
        found = []
        for folder in self._root.glob("[!.]*"):
            with suppress(FileNotFoundError):  # another process makes room as well
                size = sum(file.stat().st_size for file in folder.iterdir())
                found.append((folder.stat().st_mtime, size, folder))
        over = sum(size for _, size, _ in found) - _MOST_BYTES
        for _, size, folder in sorted(found):
            if over <= 0:
                return
            if folder not in wanted:
                remove(folder)
                over -= size

    def _folder(self, job: TrainingJob) -> Path:
        """Return where a job's adapter lies: named by settings, base and rows, in their order, but not by its task."""
        settings = {name: value for name, value in job.recipe.to_record().items() if name != "task"}
        rows = [split_record("", split)["sha256"] for split in (job.train, job.validation)]
        order = [row.id for row in job.train]
        begun = None if job.init is None else job.init.name
        said = [settings, job.base.fingerprint, list(job.spec.labels), rows, order, begun]
        key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        return self._root / key[:24]
