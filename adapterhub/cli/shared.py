"""What every command shares: where text goes, and options that mean the same everywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

RegistryOption = Annotated[
    Path | None,
    typer.Option("--registry", help="Registry folder; else $ADAPTERHUB_REGISTRY, else ./registry, else the user's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout for scripts.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. training.epochs=1. Repeatable."
    ),
]


def console() -> Console:
    """Return the console for people: stderr, so that stdout stays parseable."""
    return Console(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """Print a line for people as it is, without colours for what looks like numbers or markup."""
    console().print(text, highlight=False, markup=False)


def names_in(text: str | None) -> list[str]:
    """Return the names of "a, b,c"; none for nothing."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def emit(record: Any) -> None:
    """Print one JSON value on one line of stdout."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    sys.stdout.flush()
