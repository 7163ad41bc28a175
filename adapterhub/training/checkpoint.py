"""Checkpoints: what changes while adapters are trained, and nothing of the base, in one file replaced atomically.

One file holds all adapters that train together, at the same step: taken up again they meet in the same batches as they
would have, so the result is the same bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from adapterhub.errors import TrainingError

from .run import Snapshot

_FORMAT = "1"


@dataclass(frozen=True)
class Checkpoint:
    """Every run's snapshot by name, after `turn` steps of them all; and why others failed, by name.

    `threads` computed them: another number may round otherwise.
    """

    turn: int
    threads: int
    snapshots: Mapping[str, Snapshot]
    failed: Mapping[str, str]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> int:
    """Replace the checkpoint at `path`; return its bytes. Raises OSError, and then the old one is still there."""
    tensors = {
        f"{run}/{name}": tensor.cpu().contiguous()
        for run, snapshot in checkpoint.snapshots.items()
        for name, tensor in snapshot.tensors.items()
    }
    values = {run: snapshot.values for run, snapshot in checkpoint.snapshots.items()}
    record = {"format": _FORMAT, "values": json.dumps(values), "failed": json.dumps(dict(checkpoint.failed))}
    record |= {"turn": str(checkpoint.turn), "threads": str(checkpoint.threads)}
    data = save(tensors, metadata=record)
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return len(data)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at `path`, None where there is none. Raises TrainingError for one that is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            record: Mapping[str, str] = stored.metadata()
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']!r}")  # noqa: TRY301  (one message for all that is wrong)
            values: dict[str, dict[str, Any]] = json.loads(record["values"])
            failed = json.loads(record["failed"])
            turn, threads = int(record["turn"]), int(record["threads"])
            tensors: dict[str, dict[str, Any]] = {run: {} for run in values}
            for name in stored.keys():  # noqa: SIM118  (no mapping, though it has keys)
                run, _, key = name.partition("/")
                tensors[run][key] = stored.get_tensor(name)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise TrainingError(
            f"the checkpoint {path} cannot be read ({error}); remove it, or train without --resume, to begin anew"
        ) from error
    return Checkpoint(turn, threads, {run: Snapshot(tensors[run], values[run]) for run in values}, failed)
