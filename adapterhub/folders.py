"""Where this program keeps what it can always make again."""

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
