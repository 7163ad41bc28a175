"""Lines added to a file that only grows: each on the disk before the call returns, none of them half."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from adapterhub.folders import sync_folder

_BLOCK = 65536


def append_lines(
    path: Path, data: bytes, *, keep: Callable[[bytes], bool] = lambda _: False, mode: int = 0o666
) -> None:
    """Add whole lines to a file, made with `mode` where there is none; threads and processes may share it.

    A writer that was killed may have left a last line without its end. It is cut off, since nobody was told that it is
    kept, unless `keep` says that it is a line all the same (one that an editor left so): then it gets its end. Raises
    OSError where the disk takes it not, and then no whole line is there.
    """
    fresh = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        end = _whole_end(descriptor, size)
        if end < size and keep(os.pread(descriptor, size - end, end)):
            end, data = size, b"\n" + data
        os.ftruncate(descriptor, end)
        _write_all(descriptor, data, end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if fresh:
        sync_folder(path.parent)


def _whole_end(descriptor: int, end: int) -> int:
    """Return where the last whole line ends."""
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
