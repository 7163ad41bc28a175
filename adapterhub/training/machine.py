"""What training asks of the machine: threads that fit it, and how much memory it took."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping

import torch


def fit_threads(environment: Mapping[str, str]) -> None:
    """Use no more threads than this process may run on: more of them collapse throughput many times over.

    A number set by OMP_NUM_THREADS is the user's choice and stays.
    """
    if "OMP_NUM_THREADS" in environment:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def peak_memory_bytes() -> int:
    """Return the most memory this process has held resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS
