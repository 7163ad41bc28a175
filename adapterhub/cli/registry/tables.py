"""What the commands of `adapterhub registry` share: the registry they open, and how tables look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.shared import console, emit, say

if TYPE_CHECKING:
    from adapterhub.registry.store import Registry

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="TASK, TASK@3, TASK@prod or TASK@sha256:ab12.")]
BasesOption = Annotated[
    list[str] | None,
    typer.Option("--base", metavar="NAME", help="Where a version's base is, if it was a folder. Repeatable."),
]
WhyOption = Annotated[
    str, typer.Option("--why", metavar="TEXT", help="A reason, kept in the history.", show_default=False)
]


def open_registry(option: Path | None) -> Registry:
    """Open the registry an option names, or the usual one."""
    from adapterhub.registry.store import Registry

    return Registry(Registry.locate(option))


def print_rows(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...], json: bool) -> None:
    """Print all of every row for scripts, or some columns for people."""
    if json:
        emit(rows)
    elif rows:
        # A digest's beginning is a ref as good as the whole, and leaves room for the rest.
        print_table(title, [{**row, "digest": row.get("digest", "")[:23]} for row in rows], columns)
    else:
        say(f"{title}: none")


def print_table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print rows for people; values may hold anything, so none is read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row[column])) for column in columns))
    console().print(table)


def cell(value: Any) -> str:
    """Return a value as people read it: lists with commas, one `key: value` a line, a metric with its interval."""
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    if not isinstance(value, dict):
        return str(value)
    if {"value", "low", "high"} <= set(value):
        return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
    return "\n".join(f"{key}: {cell(each)}" for key, each in value.items())
