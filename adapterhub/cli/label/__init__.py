"""`adapterhub label …`: labels from rules, prompts and people, combined, and what is wrong with them."""

from __future__ import annotations

import typer

from . import apply, audit, feedback, fit, report, review


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(help="Make labels from noisy sources, find wrong ones, ask people.", no_args_is_help=True)
    for each in (apply, fit, report, audit, review, feedback):
        each.register(group)
    app.add_typer(group, name="label")
