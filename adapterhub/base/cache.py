"""The cache folder: its locks, and how a file or folder gets into it whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adapterhub.errors import AdapterHubError

from .record import Progress


@contextmanager
def locked(root: Path, name: str, progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock `name` of the cache; the system lets go of it when the process dies, however it dies."""
    folder = root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            progress(f"Waiting for another process that works on {name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def explained(name: str, root: Path) -> Iterator[None]:
    """Turn what the operating system refuses (no room, no permission) into an error that says what to do."""
    try:
        yield
    except OSError as error:
        where = f" at {str(error.filename)!r}" if error.filename else ""
        raise AdapterHubError(
            f"could not bring base {name!r} into the cache {str(root)!r}: {error.strerror or error}{where}; make room "
            "or get write permission there, or name another folder in ADAPTERHUB_CACHE, then try again"
        ) from error


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder in `parent`, on the file system of what it becomes; gone afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_prefix(name), dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path, name: str) -> None:
    """Remove scratch folders of `name` that a killed process left behind; call it holding the lock of `name`."""
    for stale in parent.glob(_prefix(name) + "*"):
        shutil.rmtree(stale, ignore_errors=True)


def settle(folder: Path, final: Path) -> None:
    """Make `folder`, written and flushed, become `final`; an older `final` is moved out of the way first."""
    for item in folder.iterdir():
        _flush(item)
    _flush(folder)
    if final.exists():
        with scratch(final.parent, final.name) as old:
            final.replace(old / final.name)
            folder.replace(final)
    else:
        folder.replace(final)
    _flush(final.parent)


def write_json(file: Path, record: Any) -> None:
    """Replace `file` by `record` in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(record, indent=2, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)  # a cache may be shared, and temporary files are private
        Path(name).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _prefix(name: str) -> str:
    return f".{name}.part-"


def _flush(path: Path) -> None:
    """Bring a file or folder to disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
