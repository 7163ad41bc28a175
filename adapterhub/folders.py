"""Folders: where this program keeps what it can always make again, and how entries get to the disk."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return $ADAPTERHUB_CACHE, else $XDG_CACHE_HOME/adapterhub, else ~/.cache/adapterhub."""
    if chosen := os.environ.get("ADAPTERHUB_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "adapterhub"
    return Path.home() / ".cache" / "adapterhub"


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk: a rename is only durable after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
