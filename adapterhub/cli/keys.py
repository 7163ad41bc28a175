"""`adapterhub keys …`: who may ask a server, what, and how much."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import JsonOption, console, emit

if TYPE_CHECKING:
    from adapterhub.server.keys import KeyFile

KeysOption = Annotated[
    Path | None, typer.Option("--keys", metavar="FILE", envvar="ADAPTERHUB_KEYS", help="The file of keys.")
]
NameArgument = Annotated[str, typer.Argument(help="The key's name, which logs show.")]


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(help="Make, list and revoke the keys that a server asks for.", no_args_is_help=True)
    group.command("create")(create_command)
    group.command("list")(list_command)
    group.command("revoke")(revoke_command)
    app.add_typer(group, name="keys")


def create_command(
    name: NameArgument,
    keys: KeysOption = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="NAME", help="A task it may ask, or the base by its name; else all. Repeatable."
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Requests in any minute; else no limit.")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens read and written in a day (UTC); else no limit.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Let it read metrics and load and unload adapters.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: this once, since the file keeps nothing but its hash.

    A server that runs knows it at the next request.
    """
    made, text = _file(keys).create(
        name,
        tasks=None if not task else tuple(task),
        requests_per_minute=requests_per_minute,
        tokens_per_day=tokens_per_day,
        admin=admin,
    )
    if as_json:
        emit({**made.to_record(), "key": text})
        return
    _say(f"the key {name!r}, shown this once:")
    sys.stdout.write(text + "\n")


def list_command(keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """List all keys, what each may do, and the tokens it has used today."""
    from adapterhub.server.ledger import Ledger, day_of, ledger_of

    file = _file(keys)
    found, ledger = file.read(), ledger_of(file.path)
    used = dict.fromkeys((key.id for key in found), 0)
    if ledger.is_file():
        opened = Ledger(ledger)
        used = {key.id: opened.used(key.id, day_of(opened.clock())) for key in found}
        opened.close()
    if as_json:
        emit([{**key.to_record(), "tokens_today": used[key.id]} for key in found])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "may ask", "requests/min", "tokens/day", "used today", "since")
    for key in found:
        asked = "everything" if key.tasks is None else ", ".join(key.tasks)
        limits = ("any" if each is None else str(each) for each in (key.requests_per_minute, key.tokens_per_day))
        since = key.created_at if key.revoked_at is None else f"revoked {key.revoked_at}"
        # A task's name is whatever somebody typed, so it is not read as markup.
        row = (key.name, asked + (" (admin)" if key.admin else ""), *limits, str(used[key.id]), since)
        table.add_row(*(Text(each, overflow="fold") for each in row))
    console().print(table)


def revoke_command(name: NameArgument, keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """Take a key's rights for good; a server that runs refuses it from its next request on."""
    gone = _file(keys).revoke(name)
    if as_json:
        emit(gone.to_record())
    else:
        _say(f"the key {name!r} is revoked")


def _file(path: Path | None) -> KeyFile:
    from adapterhub.errors import UsageError
    from adapterhub.server.keys import KeyFile

    if path is None:
        raise UsageError("which file holds the keys? Give --keys FILE, or set ADAPTERHUB_KEYS")
    return KeyFile(path)


def _say(line: str) -> None:
    console().print(line, markup=False, highlight=False)
