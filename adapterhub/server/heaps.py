"""How much memory the C library keeps for itself: glibc's allocator, told to keep less than it does by itself."""

from __future__ import annotations

import ctypes
import os

# glibc allows eight heaps a core, and what a thread frees in its own serves no other thread. A server's twenty threads
# are idle or wait for Python's lock nearly always, so few ever want a heap at the same time.
_HEAPS = 2
_M_ARENA_MAX = -8  # glibc's malloc.h


def share_heaps() -> bool:
    """Have the threads that start from now on share two heaps; say whether that was done.

    It is not where MALLOC_ARENA_MAX has a number already, which is the user's choice, and where the C library is not
    glibc.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(_M_ARENA_MAX, _HEAPS))


def give_back() -> bool:
    """Hand freed memory back to the system, 10 to 35 ms of work for a server of 1.1 GB; say whether there was any.

    By itself glibc gives back only what lies at the end of its first heap. Nothing is done elsewhere.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return False
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return bool(trim(0))
