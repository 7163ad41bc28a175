"""Compile the kernels for this very machine, once, into a folder that many processes may share."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .openmp import mapped_file, openmp_of, torch_library

SOURCE = Path(__file__).parent / "source"
# No -ffast-math: a NaN or an infinity must come out where one went in, or checks for them find nothing.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp",
    "-fno-tree-loop-distribute-patterns",  # rows are too short for calls of memcpy
    "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-Wno-psabi", "-Wno-ignored-attributes",
)  # fmt: skip
# Every symbol must be found in a library that is really needed: so no second OpenMP comes in beside PyTorch's.
_LINK = ("-Wl,--as-needed", "-Wl,-z,defs")
_COMPILERS = ("g++", "c++", "clang++")
_SECONDS = 300


class Unbuilt(Exception):
    """There are no kernels here; the message says why."""


def build(folder: Path, environment: Mapping[str, str]) -> Path:
    """Return the shared library in `folder`, compiled now if it is not there; raises Unbuilt.

    Its name is a hash of all that decides what is in it, so a new compiler, processor or version gets its own.
    """
    if sys.platform != "linux":
        raise Unbuilt(f"kernels are built on Linux, this is {sys.platform}")
    runtime = _openmp()
    compiler = _compiler(environment)
    library = folder / f"kernels-{_key(compiler, runtime)}.so"
    if not library.is_file():
        _compile(compiler, runtime, library)
    return library


def _openmp() -> Path:
    """Return the file of PyTorch's own OpenMP library."""
    try:
        address = openmp_of(torch_library())
    except OSError as error:
        raise Unbuilt(f"PyTorch's library does not load by name: {error}") from error
    found = None if address is None else mapped_file(address)
    if found is None:
        raise Unbuilt("PyTorch's threads come from no OpenMP library that could be found")
    return found


def _compiler(environment: Mapping[str, str]) -> list[str]:
    """Return the command of the first compiler there is: $CXX alone where that is set."""
    chosen = environment.get("CXX")
    for command in [shlex.split(chosen)] if chosen else [[name] for name in _COMPILERS]:
        if command and shutil.which(command[0], path=environment.get("PATH")):
            return command
    raise Unbuilt(f"no C++ compiler ({chosen or ', '.join(_COMPILERS)}) was found")


def _key(compiler: list[str], runtime: Path) -> str:
    digest = hashlib.sha256()
    for part in (*sorted(SOURCE.iterdir()), Path("/proc/cpuinfo")):
        digest.update(part.name.encode())
        digest.update(_cpu(part).encode() if part.name == "cpuinfo" else part.read_bytes())
    for word in (*FLAGS, *_LINK, *compiler, _run([*compiler, "--version"]), str(runtime)):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:24]


def _cpu(cpuinfo: Path) -> str:
    """Return what -march=native looks at, as far as the system tells it, of the first processor."""
    told = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    first = cpuinfo.read_text("utf-8").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition(":")[0].strip() in told)


def _compile(compiler: list[str], runtime: Path, library: Path) -> None:
    """Make `library` in one step: whoever finds it finds it whole, whoever else makes it makes the same."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{library.name}.", dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            sources = sorted(str(source) for source in SOURCE.glob("*.cpp"))
            _run([*compiler, *FLAGS, *sources, *_LINK, str(runtime), "-o", str(made)])
            with made.open("rb") as stream:
                os.fsync(stream.fileno())
            made.replace(library)
    except OSError as error:
        raise Unbuilt(f"{library.parent} cannot hold the kernels: {error}") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unbuilt(f"{command[0]} did not run: {error}") from error
    if done.returncode != 0:
        raise Unbuilt(f"{command[0]} failed with code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout
