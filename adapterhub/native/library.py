"""The kernels of this process: built, loaded and checked at first use, or none and the reason in the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from adapterhub.folders import cache_root

from .build import Unbuilt, build
from .check import disagreement
from .kernels import Kernels
from .openmp import openmp_of, torch_library

log = logging.getLogger(__name__)
SWITCH = "ADAPTERHUB_NATIVE"


@cache
def native() -> Kernels | None:
    """Return the kernels, or None where PyTorch computes. $ADAPTERHUB_NATIVE=0 asks for that.

    The first call may compile for some seconds; what it finds holds for the whole process.
    """
    return open_kernels(cache_root() / "native", os.environ)


def open_kernels(folder: Path, environment: Mapping[str, str]) -> Kernels | None:
    """Return kernels from `folder`, built there if need be; None, and a line in the log, where that fails."""
    if environment.get(SWITCH) == "0":
        log.info("native kernels are switched off by %s=0; PyTorch computes", SWITCH)
        return None
    try:
        file = build(folder, environment)
        kernels = Kernels(file)
    except (Unbuilt, OSError, AttributeError) as error:
        log.info("no native kernels, PyTorch computes: %s", error)
        return None
    if openmp_of(file) != openmp_of(torch_library()):
        log.warning("native kernels would run threads beside those of PyTorch; they are not used, PyTorch computes")
        return None
    if wrong := disagreement(kernels):
        log.warning("the native kernel %s differs from PyTorch on this machine; none is used, PyTorch computes", wrong)
        return None
    return kernels
