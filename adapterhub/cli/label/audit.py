"""`adapterhub label audit`: which labels of a file are likely wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.shared import JsonOption, console, emit

from .options import writable

if TYPE_CHECKING:
    from adapterhub.pipeline.audit import Audit


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("audit")(audit_command)


def audit_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labelled classification rows: JSONL, CSV or Parquet.")],
    base: Annotated[
        str, typer.Option("--base", metavar="NAME", help="Whose features the heads read.")
    ] = "all-minilm-l6-v2",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="QUEUE.csv", help="Write the queue for `adapterhub label review`.")
    ] = None,
    alike: Annotated[
        float, typer.Option("--alike", min=0, max=1, help="Cosine from which two rows say the same.")
    ] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Draws the folds.")] = 0,
    json: JsonOption = False,
) -> None:
    """List rows whose label is likely wrong, the most suspicious first, each with a better one.

    Cheap heads judge rows that they did not see (confident learning). Rows that say nearly the same under different
    labels are listed too. It is a queue for people: many of such rows are right as they are.
    """
    from adapterhub.base.source import open_base
    from adapterhub.pipeline.audit import audit, write_queue

    if out is not None:
        writable(out, file)
    with base_progress() as progress:
        opened = open_base(base, progress=progress)
    found = audit(file, opened, alike=alike, seed=seed, stage=stage)
    if out is not None:
        write_queue(out, found)
    if json:
        emit([each.to_record() for each in found.doubts])
    else:
        _print(found, out)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Show on stderr what is being done, and for how long."""
    screen, started = console(), time.perf_counter()
    with screen.status(what):
        yield
    screen.print(f"{what}: {time.perf_counter() - started:.1f} s", markup=False, highlight=False)


def _print(found: Audit, out: Path | None) -> None:
    from adapterhub.cli.registry.tables import print_table
    from adapterhub.cli.shared import say

    rows = [
        {
            "line": each.where.rsplit(":", 1)[-1],
            "given": each.given,
            "suggested": each.suggested,
            "score": f"{each.score:+.3f}",
            "why": each.why,
            "text": each.text[:70],
        }
        for each in found.doubts[:20]
    ]
    title = f"{len(rows)} of {len(found.doubts)} doubtful labels in {found.rows} rows of {found.data}"
    if rows:
        print_table(title, rows, ("line", "given", "suggested", "score", "why", "text"))
    else:
        say(f"no doubtful labels in {found.rows} rows of {found.data}")
    if found.twins:
        say(f"{found.twins} pairs of rows say nearly the same under different labels")
    if out is not None:
        say(f"the queue is in {out}; look at it with: adapterhub label review {out}")
