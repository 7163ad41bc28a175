"""Fingerprints remembered, so that a base's weights are read once and not at every start.

A fingerprint is kept under the folder's real path together with name, size, modification time and inode of every file
it was made from; where any of these differs it is computed again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .cache import locked, write_json
from .fingerprint import fingerprint
from .record import Progress

_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
_FORMAT = 1
RECORD = "base.json"


def stamp(folder: Path) -> list[list[Any]]:
    """Return [name, bytes, modified (ns), inode] of every file in `folder` that could matter; links are followed."""
    found = []
    for file in sorted(folder.iterdir()):
        if file.suffix in _SUFFIXES and file.name != RECORD and file.is_file():
            state = file.stat()
            found.append([file.name, state.st_size, state.st_mtime_ns, state.st_ino])
    return found


def remembered_fingerprint(folder: Path, root: Path, progress: Progress | None = None) -> str:
    """Return the fingerprint of the base in `folder`, from the cache at `root` if nothing changed. Raises BaseError."""
    key = str(folder.resolve())
    # Taken before reading: a file that changes meanwhile is seen next time.
    current = stamp(folder)
    known = _read(root).get(key)
    if isinstance(known, dict) and known.get("stamp") == current:
        return str(known["fingerprint"])
    if progress:
        progress(f"Fingerprinting {folder}")
    computed = fingerprint(folder)
    try:
        with locked(root, "fingerprints"):
            others = {path: entry for path, entry in _read(root).items() if Path(path).is_dir()}
            entries = {**others, key: {"fingerprint": computed, "stamp": current}}
            write_json(root / "fingerprints.json", {"format": _FORMAT, "folders": entries})
    except OSError:
        pass  # A cache that cannot be written costs time, not answers.
    return computed


def _read(root: Path) -> dict[str, Any]:
    try:
        record = json.loads((root / "fingerprints.json").read_text("utf-8"))
        entries = record["folders"] if record["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # Missing or damaged: everything in it can be computed again.
    return entries if isinstance(entries, dict) else {}
