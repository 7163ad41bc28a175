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


def emit(record: Any) -> None:
    """Print one JSON value on one line of stdout."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    sys.stdout.flush()
