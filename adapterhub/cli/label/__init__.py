"""`adapterhub label …`: from votes of rules, prompts and people to labelled rows."""

from __future__ import annotations

import typer

from . import fit, report


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(help="Combine noisy votes into labels, and look at who votes how.", no_args_is_help=True)
    for each in (fit, report):
        each.register(group)
    app.add_typer(group, name="label")
