"""`adapterhub label apply`: labelling functions on rows, to a file of votes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.shared import JsonOption, RegistryOption, console, emit

if TYPE_CHECKING:
    from adapterhub.labeling.apply import Applied, FunctionReport


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("apply")(apply_command)


def apply_command(
    rules: Annotated[
        Path, typer.Argument(metavar="RULES.py", help="A Python file of labelling functions. Its code runs.")
    ],
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Rows with a text: JSONL, CSV, Parquet or .txt.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="VOTES.csv", help="Where the votes go.")],
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="The labels there are; a vote for any other is an error."),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=0, help="How many at once; 0 is one for each core this process may use.")
    ] = 0,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Run the labelling functions of a file on rows: one column a function, an empty cell where it abstains.

    What ran before, the same function on the same row, is not run again. Errors are counted for each function and
    shown. The exit code is 1 where a function failed on every row.
    """
    from adapterhub.pipeline.vote import vote
    from adapterhub.registry.store import Registry

    names = [name.strip() for name in (labels or "").split(",") if name.strip()]
    with _bar() as watch, base_progress() as progress:
        found = vote(
            rules,
            data,
            out,
            labels=names,
            processes=processes or _cores(),
            registry=None if registry is None else Registry(registry),
            progress=progress,
            watch=watch,
        )
    if json:
        emit({"out": str(out), "rows": len(found.votes.ids), "functions": [each.to_record() for each in found.reports]})
    _print(found, out)
    if found.failed:
        raise typer.Exit(1)


def _print(found: Applied, out: Path) -> None:
    from adapterhub.cli.registry.tables import print_table, say

    rows = [
        {
            "function": each.name,
            "votes": ", ".join(f"{label} {count}" for label, count in each.votes.items()) or "none",
            "abstains": each.abstains,
            "errors": each.errors,
            "kept": each.cached,
        }
        for each in found.reports
    ]
    count = len(found.votes.ids)
    print_table(f"{len(rows)} functions on {count} rows", rows, ("function", "votes", "abstains", "errors", "kept"))
    for each in found.reports:
        _print_troubles(each)
    covered = int((found.votes.matrix >= 0).any(axis=1).sum())
    say(f"{covered} of {count} rows have a vote; the votes are in {out}")
    for name in found.failed:
        say(f"{name} failed on every row")


def _print_troubles(report: FunctionReport) -> None:
    from adapterhub.cli.registry.tables import say
    from adapterhub.labeling.apply import SHOWN

    for each in report.troubles[:SHOWN]:
        say(f"{report.name} ({report.where}): {each.type}: {each.message} ({each.count} rows, first {each.where})")
    if (more := len(report.troubles) - SHOWN) > 0:
        say(f"{report.name}: {more} more kinds of errors")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _bar() -> Iterator[Callable[[int], Callable[[int], None]]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as bar:

        def watch(total: int) -> Callable[[int], None]:
            task = bar.add_task("Voting", total=total)
            return lambda count: bar.advance(task, count)

        yield watch
