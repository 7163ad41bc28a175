"""`adapterhub data …`: features of rows, duplicates, scores, what to drop, what to label next."""

from __future__ import annotations

import typer

from . import dedup, embed, prune, score, select


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(help="Find out which rows are worth having.", no_args_is_help=True)
    for each in (embed, dedup, score, prune, select):
        each.register(group)
    app.add_typer(group, name="data")
