"""`adapterhub registry …`: look into a registry, name, compare, prove, carry and delete versions."""

from __future__ import annotations

import typer

from . import carry, change, judge, read


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(help="List, name, compare, verify and carry published versions.", no_args_is_help=True)
    for each in (read, judge, change, carry):
        each.register(group)
    app.add_typer(group, name="registry")
