"""Writes that are either there or not there, whatever stops the program, and the lock that orders them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from adapterhub.errors import AdapterHubError, FileMissing, Overloaded
from adapterhub.folders import sync_folder

TEMPORARY = ".tmp-"
LOCKS = ".locks"
_LOCK_SECONDS = 120.0


def temporary_name() -> str:
    """Return a fresh hidden name; nothing whose name starts with `TEMPORARY` is ever read as data."""
    return TEMPORARY + secrets.token_hex(8)


def utc_now() -> str:
    """Return the time, to the second, as indexes and cards write it: "2026-01-31T12:00:00Z"."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, text: str) -> None:
    """Write a new file with exactly these bytes (UTF-8) and force them to the disk."""
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, text: str) -> None:
    """Put `text` at `path` so that every reader sees the old file or the new one, never a part."""
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file that takes the place of `path` when the block ends, whole and on the disk."""
    if not path.absolute().parent.is_dir():
        raise FileMissing(f"{path}: there is no folder {str(path.absolute().parent)!r} to write into; make it first")
    temporary = path.with_name(temporary_name())
    try:
        yield temporary
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file, link or folder; a folder leaves its name in one step, so no half of it is ever seen under it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif path.name.startswith(TEMPORARY):
        # Never read as data, so half of it may be seen; and under a new name the task it belongs to would be lost.
        shutil.rmtree(path)
    else:
        aside = path.with_name(temporary_name())
        path.rename(aside)
        shutil.rmtree(aside)


@contextmanager
def locked(root: Path, task: str) -> Iterator[None]:
    """Hold the one lock of `task`; raises Overloaded after two minutes of waiting.

    Lock files live in one hidden folder that tells git to ignore it, so that a registry can be committed as it is.
    """
    folder = root / LOCKS
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ".gitignore", "*\n")
    path = folder / f"{task}.lock"
    try:
        with FileLock(path, timeout=_LOCK_SECONDS):
            yield
    except Timeout as error:
        raise Overloaded(
            f"another process has been writing to task {task!r} for {_LOCK_SECONDS:.0f} s (lock {path}); "
            "wait for it or end it, then try again"
        ) from error


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses (no room, no permission) into an error that says what to do."""
    try:
        yield
    except OSError as error:
        where = f" at {str(error.filename)!r}" if error.filename else ""
        raise AdapterHubError(
            f"could not {doing}: {error.strerror or error}{where}; the registry is as it was before; "
            "make room or get write permission, then try again"
        ) from error
