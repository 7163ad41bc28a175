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

FILE = "checkpoint.safetensors"
_FORMAT = "1"


@dataclass(frozen=True)
class Checkpoint:
    """Every run's snapshot by name, after `turn` steps of them all; and why others failed, by name."""

    turn: int
    snapshots: Mapping[str, Snapshot]
    failed: Mapping[str, str]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> int:
    """Replace the checkpoint in `folder`; return its bytes. Raises OSError, and then the old one is still there."""
    tensors = {
        f"{run}/{name}": tensor.cpu().contiguous()
        for run, snapshot in checkpoint.snapshots.items()
        for name, tensor in snapshot.tensors.items()
    }
    values = {run: snapshot.values for run, snapshot in checkpoint.snapshots.items()}
    record = {"format": _FORMAT, "values": json.dumps(values), "failed": json.dumps(dict(checkpoint.failed))}
    record["turn"] = str(checkpoint.turn)
    data = save(tensors, metadata=record)
    scratch = folder / f".{FILE}-{os.getpid()}"
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(folder / FILE)
    finally:
        scratch.unlink(missing_ok=True)
    return len(data)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint in `folder`, None where there is none. Raises TrainingError for one that is damaged."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            record: Mapping[str, str] = stored.metadata()
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']!r}")  # noqa: TRY301  (one message for all that is wrong)
            values: dict[str, dict[str, Any]] = json.loads(record["values"])
            failed = json.loads(record["failed"])
            turn = int(record["turn"])
            tensors: dict[str, dict[str, Any]] = {run: {} for run in values}
            for name in stored.keys():  # noqa: SIM118  (no mapping, though it has keys)
                run, _, key = name.partition("/")
                tensors[run][key] = stored.get_tensor(name)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise TrainingError(
            f"the checkpoint {file} cannot be read ({error}); remove it, or train without --resume, to begin anew"
        ) from error
    return Checkpoint(turn, {run: Snapshot(tensors[run], values[run]) for run in values}, failed)
