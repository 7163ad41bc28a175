"""How many threads compute: asked for, or measured, never more than this process may use.

More threads than free cores collapse throughput by an order of magnitude; two logical cores may be one physical core,
where a second thread gains nothing or loses; beside a busy process even two can be several times slower than one. None
of this can be read from the machine, so work like that to come is timed at start-up.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
# More threads must win by this much: they take cores from everybody else.
WORTH = 1.1
_SECONDS, _ROUNDS = 0.6, 2


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads, and why it is that one."""

    count: int
    reason: str


def choose_threads(
    asked: int | None, make: Callable[[], Callable[[], object]], device: str | torch.device = "cpu"
) -> ThreadChoice:
    """Return `asked`, else $OMP_NUM_THREADS, else the number with which the work that `make` returns runs fastest.

    Measuring takes under a second and leaves torch's settings as they were.
    """
    if asked is not None:
        return ThreadChoice(asked, "asked for")
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if said.isdigit() and int(said) > 0:
        return ThreadChoice(int(said), "OMP_NUM_THREADS")
    cores = usable_cores()
    offered = candidates(cores)
    if len(offered) == 1:
        return ThreadChoice(offered[0], "one core is usable")
    if torch.device(device).type != "cpu":
        return ThreadChoice(offered[-1], f"{cores} cores are usable")
    took = measure(offered, make)
    told = ", ".join(f"{took[count] * 1e3:.1f} ms with {count}" for count in sorted(took))
    return ThreadChoice(pick(took), f"measured on {cores} usable cores: {told}")


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return the cores this process may keep busy: those of its affinity mask, within its cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroups, own)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(cgroups: Path, own: Path) -> float | None:
    """Return how many CPUs' time the process's cgroup (version 2) or one above it allows; None where all."""
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    # In a container the path may be that of the host, which is not there; the container's own limit lies at the root.
    folder = cgroups / path.strip("/")
    quotas = [_quota(each / "cpu.max") for each in (folder, *folder.parents) if each.is_relative_to(cgroups)]
    return min((quota for quota in quotas if quota is not None), default=None)


def candidates(cores: int) -> list[int]:
    """Return the numbers to try, rising: powers of two, and all cores but one, which answers HTTP, above two."""
    most = cores if cores <= 2 else cores - 1
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def pick(took: Mapping[int, float]) -> int:
    """Return the least number of threads that is not clearly slower than the fastest."""
    best = min(took.values())
    return min(count for count, seconds in took.items() if seconds <= best * WORTH)


def measure(counts: Sequence[int], make: Callable[[], Callable[[], object]]) -> dict[int, float]:
    """Return the median seconds of the work that `make` returns with each number of torch threads, tried in turns.

    A change of threads ends and starts workers, so each number gets a stretch of time, of which the first passes do not
    count. All of it, `make` too, runs in a thread of its own, whose pool of workers ends with it, and puts back what
    torch was set to: the number of threads is partly the calling thread's, partly the process's.
    """
    took: dict[int, list[float]] = {count: [] for count in counts}
    before = torch.get_num_threads()
    stretch = _SECONDS / (_ROUNDS * len(counts))

    def run() -> None:
        try:
            work = make()
            for turn in range(_ROUNDS * len(counts)):
                count = counts[turn % len(counts)]
                torch.set_num_threads(count)
                with torch.inference_mode():
                    took[count] += _passes(work, stretch)
        finally:
            torch.set_num_threads(before)

    thread = threading.Thread(target=run, name="adapterhub-threads")
    thread.start()
    thread.join()
    return {count: median(seconds) for count, seconds in took.items()}


def _passes(work: Callable[[], object], seconds: float) -> list[float]:
    """Return what passes took in the second half of a stretch of time; one pass at least."""
    begin = time.perf_counter()
    took: list[float] = []
    while not took or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        end = time.perf_counter()
        if start - begin > seconds / 2:
            took.append(end - start)
    return took


def _quota(file: Path) -> float | None:
    try:
        quota, period = file.read_text("utf-8").split()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None
