"""`adapterhub registry …`: look into a registry, name versions, prove them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.shared import JsonOption, RegistryOption, console, emit

if TYPE_CHECKING:
    from adapterhub.registry.store import Registry
    from adapterhub.registry.version import Version

registry_app = typer.Typer(help="List, name and verify published versions.", no_args_is_help=True)

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="TASK, TASK@3, TASK@prod or TASK@sha256:ab12.")]


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    app.add_typer(registry_app, name="registry")


@registry_app.command("list")
def list_command(
    task: Annotated[str | None, typer.Argument(help="Show this task's versions; else all tasks.")] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """List all tasks, or the versions of one."""
    store = _open(registry)
    if task is not None:
        rows = [version.to_record() for version in store.versions(task)]
        _print_rows(f"versions of {task}", rows, ("ref", "digest", "aliases", "created_at"), json)
        return
    rows, broken = _summaries(store)
    _print_rows(f"tasks in {store.root}", rows, ("task", "versions", "latest", "aliases", "base", "created_at"), json)
    if broken:
        raise typer.Exit(1)


@registry_app.command("show")
def show_command(ref: RefArgument, registry: RegistryOption = None, json: JsonOption = False) -> None:
    """Show what a version was made of and how good it is."""
    version = _open(registry).resolve(ref)
    card = version.card().to_record()
    if json:
        emit({**version.to_record(), "card": card})
        return
    record = {**version.to_record(), **{key: card[key] for key in _SHOWN if card.get(key)}}
    _print_table(version.ref, [{"what": key, "is": value} for key, value in record.items()], ("what", "is"))


@registry_app.command("resolve")
def resolve_command(ref: RefArgument, registry: RegistryOption = None, json: JsonOption = False) -> None:
    """Say which version a ref means now."""
    version = _open(registry).resolve(ref)
    if json:
        emit({key: version.to_record()[key] for key in ("task", "version", "digest", "path")})
    else:
        _say(f"{version.ref}  {version.digest}  {version.path.absolute()}")


@registry_app.command("alias")
def alias_command(
    task: Annotated[str, typer.Argument(help="The task.")],
    name: Annotated[str, typer.Argument(help="The alias, e.g. prod.")],
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="The version it shall mean.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Point an alias at a version, or remove it."""
    from adapterhub.errors import UsageError

    if (ref is None) != remove:
        raise UsageError(f"give either a version for {task}@{name}, e.g. {task}@3, or --remove")
    version = _open(registry).alias(task, name, ref)
    if json:
        emit({"task": task, "alias": name, "version": version.version if version else None})
    elif version:
        _say(f"{task}@{name} is now {version.ref} ({version.digest})")
    else:
        _say(f"{task}@{name} is removed")


@registry_app.command("verify")
def verify_command(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="One version; else all.")] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Hash the files again and compare with what was published; exit code 1 if anything is wrong."""
    store = _open(registry)
    found = store.verify(ref)
    problems = [each for each in found if not each.note]
    if json:
        notes = [each.to_record() for each in found if each.note]
        emit({"ok": not problems, "problems": [each.to_record() for each in problems], "notes": notes})
    else:
        for each in found:
            _say(f"{'note' if each.note else 'PROBLEM'}: {each.where}: {each.message}")
        _say(f"{ref or store.root}: {f'{len(problems)} wrong' if problems else 'as published'}")
    if problems:
        raise typer.Exit(1)


# What people see of a card; --json gives all of it.
_SHOWN = (
    *("kind", "description", "labels", "metrics", "measured_on", "calibration", "data", "training"),
    *("packages", "git_commit", "parents", "source"),
)


def _open(option: Path | None) -> Registry:
    from adapterhub.registry.store import Registry

    return Registry(Registry.locate(option))


def _summaries(store: Registry) -> tuple[list[dict[str, Any]], bool]:
    """Return each task as a row, from its index alone, and whether some could not be read and were left out."""
    from adapterhub.errors import AdapterHubError

    rows, broken = [], False
    for task in store.tasks():
        try:
            rows.append(_summary(store.versions(task)))
        except AdapterHubError as error:
            _say(f"Error: {error}")
            broken = True
    return rows, broken


def _summary(versions: list[Version]) -> dict[str, Any]:
    latest = versions[-1]
    return {
        "task": latest.task,
        "versions": len(versions),
        "latest": latest.version,
        "aliases": {alias: version.version for version in versions for alias in version.aliases},
        "base": latest.base,
        "base_fingerprint": latest.base_fingerprint,
        "created_at": latest.created_at,
    }


def _say(text: str) -> None:
    """Print a line for people as it is, without colours for what looks like numbers or markup."""
    console().print(text, highlight=False, markup=False)


def _print_rows(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...], json: bool) -> None:
    """Print all of every row for scripts, or some columns for people."""
    if json:
        emit(rows)
    elif rows:
        # A digest's beginning is a ref as good as the whole, and leaves room for the rest.
        _print_table(title, [{**row, "digest": row.get("digest", "")[:23]} for row in rows], columns)
    else:
        _say(f"{title}: none")


def _print_table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print rows for people; values may hold anything, so none is read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[column])) for column in columns))
    console().print(table)


def _cell(value: Any) -> str:
    """Return a value as people read it: lists with commas, one `key: value` a line, a metric with its interval."""
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if not isinstance(value, dict):
        return str(value)
    if {"value", "low", "high"} <= set(value):
        return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
    return "\n".join(f"{key}: {_cell(each)}" for key, each in value.items())
