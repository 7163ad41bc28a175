"""How a worker is asked and answers: one JSON object a line on stdin and stdout. Standard library only.

A worker runs in whatever environment its engine needs, so it imports nothing of adapterhub's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1


def take_stdout() -> TextIO:
    """Return the real stdout and send all further prints to stderr: libraries may say what they like.

    A worker also asks to be killed with its asker, or it would stay behind, stopped, with all its memory.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def serve(answers: TextIO, handle: Callable[[dict[str, Any]], dict[str, Any]], about: dict[str, Any]) -> None:
    """Say `about`, then answer every line of stdin until it ends. An error goes to the asker, and ends the worker."""
    answers.write(json.dumps(about) + "\n")
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise
        answers.write(json.dumps(answer) + "\n")


def peak_memory_bytes() -> int:
    """Return the most memory this process has held resident.

    Not from getrusage, which starts a new program with the peak of the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
