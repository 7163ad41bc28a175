"""Which OpenMP library PyTorch's threads come from: kernels share it, for a second pool would fight for the cores."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")


def torch_library() -> Path:
    """Return the library that holds PyTorch's operators; it is loaded."""
    return Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def openmp_of(library: Path) -> int | None:
    """Return where the OpenMP functions lie in memory that a library calls, loading it if need be; None: it has none.

    Raises OSError where it does not load.
    """
    try:
        function = ctypes.CDLL(str(library)).omp_get_max_threads
    except AttributeError:
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def mapped_file(address: int) -> Path | None:
    """Return the file that an address of this process belongs to."""
    for line in MAPS.read_text("utf-8").splitlines():
        span, *rest = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return Path(rest[4]) if len(rest) == 5 and rest[4].startswith("/") else None
    return None
