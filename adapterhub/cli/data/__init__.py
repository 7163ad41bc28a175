"""`adapterhub data …`: features of rows, duplicates, scores, what to drop or label next, what more would bring."""

from __future__ import annotations

import typer

from . import coverage, dedup, embed, forecast, prune, score, select


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(help="Find out which rows are worth having.", no_args_is_help=True)
    for each in (embed, dedup, score, prune, select, forecast, coverage):
        each.register(group)
    app.add_typer(group, name="data")
