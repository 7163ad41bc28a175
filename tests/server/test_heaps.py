"""Threads share heaps, and freed memory goes back, where the C library can be told so."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

# Sixteen threads that allocate at the same time, then glibc's own account of its heaps.
COUNT = """
import ctypes, sys, threading
from adapterhub.server.heaps import share_heaps
done = share_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
together, end = threading.Barrier(17), threading.Barrier(17)
def allocate():
    together.wait()
    for size in range(1, 2000):
        libc.malloc(size)
    end.wait()
threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads:
    thread.start()
together.wait()
end.wait()
print(done, flush=True)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""
glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")


def heaps(**environment: str) -> tuple[str, int]:
    """Return what `share_heaps` said in a new process, and how many heaps there were in the end."""
    environ = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    ended = subprocess.run(
        [sys.executable, "-c", COUNT], env={**environ, **environment}, capture_output=True, text=True, check=True
    )
    return ended.stdout.split()[0], ended.stdout.count("<heap nr=")


@glibc
def test_threads_share_two_heaps() -> None:
    assert heaps() == ("True", 2)


@glibc
def test_what_the_user_says_counts() -> None:
    done, count = heaps(MALLOC_ARENA_MAX="5")
    assert done == "False"
    assert 2 < count <= 5


@glibc
def test_what_was_freed_goes_back_to_the_system() -> None:
    script = """
import ctypes
from adapterhub.server.heaps import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
blocks = [libc.malloc(50_000) for _ in range(2000)]
for block in blocks:
    libc.memset(block, 1, 50_000)
full = resident()
for block in blocks[:-1]:  # the last one holds the end of the heap
    libc.free(block)
kept = resident()
print(full - kept, give_back(), full - resident())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    early, done, late = ended.stdout.split()
    assert done == "True"
    assert int(early) < 10_000_000 < 90_000_000 < int(late)
