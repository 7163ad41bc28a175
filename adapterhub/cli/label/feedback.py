"""`adapterhub label feedback`: what served answers should have been, as corrections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.shared import JsonOption, emit, say

from .options import writable


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("feedback")(feedback_command)


def feedback_command(
    feedback: Annotated[Path, typer.Argument(metavar="FEEDBACK", help="The feedback.jsonl that a server kept.")],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task whose answers are meant.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="File of corrections to add to.")],
    json: JsonOption = False,
) -> None:
    """Turn a classification task's feedback into corrections; what the file says already is not said again.

    A correction goes by the hash of its text: `label correct` and `labels.corrections` of a recipe give it to the rows
    with that text.
    """
    from adapterhub.data.feedback import read_feedback
    from adapterhub.labeling.corrections import append_corrections, latest, read_corrections
    from adapterhub.pipeline.feedback import as_corrections

    writable(out, feedback)
    known = latest(read_corrections(out)) if out.exists() else {}
    said = list(read_feedback(feedback))
    tasks = {each.task for each in said if each.task is not None}
    found, skipped = as_corrections(said, task)
    fresh = [each for each in found if each.id not in known or known[each.id].label != each.label]
    append_corrections(out, fresh)
    if json:
        emit({"out": str(out), "added": len(fresh), "known": len(found) - len(fresh), "skipped": skipped})
    for each in skipped:
        say(f"skipped: {each}")
    if tasks and task not in tasks:  # a name that was mistyped, or nobody complained yet
        say(f"{feedback} has nothing on {task!r}, but on {', '.join(sorted(tasks))}")
    say(f"{len(fresh)} corrections added to {out}, {len(found) - len(fresh)} were there")
