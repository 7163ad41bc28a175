"""Labelling functions run on examples, here or in processes of their own; an error of one is told, never swallowed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from adapterhub.data.example import Example
from adapterhub.errors import AdapterHubError

from .functions import ABSTAIN, LabelingFunction
from .rules import Rules, beside, load_rules

# Rows of one function that go to a process at once.
CHUNK = 256
_MESSAGE = 300


@dataclass(frozen=True)
class Failure:
    """What a function did wrong on a row: the name of the exception and its message."""

    type: str
    message: str


Outcome = str | None | Failure
"""A label, None for an abstain, or what went wrong."""


@dataclass(frozen=True)
class Work:
    """Rows (their indices) on which the function `name` is to run."""

    name: str
    rows: tuple[int, ...]


def chunks(name: str, rows: Sequence[int]) -> Iterator[Work]:
    """Yield `rows` in pieces."""
    for start in range(0, len(rows), CHUNK):
        yield Work(name, tuple(rows[start : start + CHUNK]))


def run_work(
    rules: Rules, work: Sequence[Work], examples: Sequence[Example], processes: int
) -> Iterator[tuple[Work, list[Outcome]]]:
    """Yield each piece of work with its outcomes as it is done, in any order.

    With more than one process each loads the file itself. What functions print goes to stderr. Raises
    AdapterHubError where a process dies.
    """
    if processes <= 1 or len(work) <= 1:
        for each in work:
            yield each, _run(rules, each.name, [examples[row] for row in each.rows])
        return
    # Spawned, not forked: a fork copies locks of threads that are not there to open them.
    pool = ProcessPoolExecutor(
        min(processes, len(work)), get_context("spawn"), _begin, (str(rules.path), rules.source, list(sys.path))
    )
    left = iter(work)
    running: dict[Future[list[Outcome]], Work] = {}
    try:
        while True:
            for each in left:
                running[pool.submit(_run_there, each.name, [examples[row] for row in each.rows])] = each
                if len(running) > 2 * processes:
                    break
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                said = future.result()
                yield running.pop(future), said
    except BrokenProcessPool as error:
        names = ", ".join(sorted({each.name for each in running.values()}))
        raise AdapterHubError(
            f"{rules.path}: a process that ran labelling functions died (at work were {names}); what was done before "
            "is kept; run again with --processes 1 to see which one it is"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_vote(said: Any) -> Outcome:
    """Return what a function said as an outcome: a label name, an abstain, or an error."""
    if said is ABSTAIN:
        return None
    if not isinstance(said, str):
        hint = "; is a `return` missing?" if said is None else ""
        return Failure("NoVote", f"it returned {said!r:.80}; return a label name or ABSTAIN{hint}")
    if not said or said != said.strip() or not said.isprintable():
        return Failure(
            "NoVote", f"it returned {said!r:.80}, which is no label name: it is empty, or begins or ends blank"
        )
    return str(said)


def failure(error: BaseException) -> Failure:
    """Return an exception as a record that fits a line."""
    return Failure(type(error).__name__, " ".join(str(error).split())[:_MESSAGE])


def _run(rules: Rules, name: str, examples: Sequence[Example]) -> list[Outcome]:
    function = rules.functions[name]
    assert isinstance(function, LabelingFunction), "functions that ask models run all at once"
    with beside(rules.path.resolve().parent), redirect_stdout(sys.stderr):
        return [_vote(function, example) for example in examples]


def _vote(function: LabelingFunction, example: Example) -> Outcome:
    try:
        return check_vote(function(example))
    except (Exception, SystemExit) as error:
        return failure(error)


_here: dict[str, Rules] = {}  # in a process that runs functions: the file it loaded


def _begin(path: str, source: bytes, folders: list[str]) -> None:
    sys.path[:] = folders
    _here["rules"] = load_rules(Path(path), source)


def _run_there(name: str, examples: Sequence[Example]) -> list[Outcome]:
    return _run(_here["rules"], name, examples)
