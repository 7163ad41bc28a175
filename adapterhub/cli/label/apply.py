"""`adapterhub label apply`: labelling functions, prompts and other voters on rows, to a file of votes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.shared import JsonOption, RegistryOption, console, emit, names_in

from .options import writable

if TYPE_CHECKING:
    from adapterhub.labeling.apply import FunctionReport
    from adapterhub.labeling.votes import Votes
    from adapterhub.pipeline.gather import Gathered, Watch


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("apply")(apply_command)


def apply_command(
    voters: Annotated[
        list[Path],
        typer.Argument(
            metavar="VOTERS...", help="Labelling functions (.py, whose code runs), prompts (.yaml), votes (.csv)."
        ),
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
    base: Annotated[
        str | None,
        typer.Option("--base", help="Base to ask; else the one that a file of prompts, or a version, names."),
    ] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Have voters vote on rows: one column a voter, an empty cell where it abstains.

    What was asked before, the same voter about the same row, is not asked again. Errors of functions are counted and
    shown. The exit code is 1 where a function failed on every row.
    """
    from adapterhub.pipeline.vote import vote
    from adapterhub.registry.store import Registry

    writable(out, data, *voters)
    names = names_in(labels)
    with _bar() as watch, base_progress() as progress:
        votes, found = vote(
            voters,
            data,
            out,
            labels=names,
            base=base,
            processes=processes or _cores(),
            registry=None if registry is None else Registry(registry),
            progress=progress,
            watch=watch,
        )
    if json:
        functions = [each.to_record() for each in found.functions]
        models = [{"name": each.voter, **each.to_record(), "asked": each.asked} for each in found.casts]
        emit({"out": str(out), "rows": len(votes.ids), "functions": functions, "models": models})
    _print(votes, found, out)
    if found.failed:
        raise typer.Exit(1)


def _print(votes: Votes, found: Gathered, out: Path) -> None:
    from collections import Counter

    from adapterhub.cli.registry.tables import print_table
    from adapterhub.cli.shared import say

    errors = {each.name: each.errors for each in found.functions}
    asked = {each.voter: each.asked for each in found.casts}
    count = len(votes.ids)
    asked |= {each.name: count - each.cached for each in found.functions}
    rows = []
    for name, column in found.columns.items():
        said = Counter(vote for vote in column if vote is not None)
        rows.append(
            {
                "voter": name,
                "votes": ", ".join(f"{label} {said[label]}" for label in sorted(said)) or "none",
                "abstains": count - said.total() - errors.get(name, 0),
                "errors": errors.get(name, 0),
                "asked now": asked.get(name, 0),
            }
        )
    print_table(f"{len(rows)} voters on {count} rows", rows, ("voter", "votes", "abstains", "errors", "asked now"))
    for each in found.functions:
        _print_troubles(each)
    covered = int((votes.matrix >= 0).any(axis=1).sum())
    say(f"{covered} of {count} rows have a vote; the votes are in {out}")
    from adapterhub.labeling.label_model.majority import near_constant

    constant = near_constant(votes.matrix, len(votes.labels)) if votes.labels else ()
    if same := [name for name, each in zip(votes.voters, constant, strict=False) if each]:
        say(f"nearly always the same label, which tells little: {', '.join(same)}")
    for name in found.failed:
        say(f"{name} failed on every row")


def _print_troubles(report: FunctionReport) -> None:
    from adapterhub.cli.shared import say
    from adapterhub.labeling.apply import SHOWN

    for each in report.troubles[:SHOWN]:
        say(f"{report.name} ({report.where}): {each.type}: {each.message} ({each.count} rows, first {each.where})")
    if (more := len(report.troubles) - SHOWN) > 0:
        say(f"{report.name}: {more} more kinds of errors")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _bar() -> Iterator[Watch]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as bar:

        def watch(voters: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(voters, total=total)
            return lambda count: bar.advance(task, count)

        yield watch
