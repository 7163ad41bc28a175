"""`python -m adapterhub.cli.reference`: docs/cli.md, made from the command line itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from .main import create_app

INTRODUCTION = """# Command line

Made by `make docs` from the program's own help; a test keeps the two equal. Text for people goes to stderr, data to
stdout. Exit codes: 0 success, 1 error, 2 wrong call, 130 interrupted.
"""


def reference() -> str:
    """Return the page: the help of every command, as a terminal of 100 columns shows it."""
    root = typer.main.get_command(create_app())
    parts = [INTRODUCTION]
    for name, command in _commands("adapterhub", root):
        context = command.context_class(command, info_name=name, terminal_width=100, max_content_width=100)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context).strip()}\n```\n")
    return "\n".join(parts)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, each in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {child}", each)


if __name__ == "__main__":
    sys.stdout.write(reference())
