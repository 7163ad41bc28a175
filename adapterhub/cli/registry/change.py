"""`adapterhub registry alias|promote|delete|gc`: which versions there are and what names mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.shared import JsonOption, RegistryOption, emit, say

from .judge import print_comparison, watched
from .tables import BasesOption, RefArgument, WhyOption, open_registry, print_rows


def register(group: typer.Typer) -> None:
    """Add the commands to the group."""
    for name, command in (
        ("alias", alias_command),
        ("promote", promote_command),
        ("delete", delete_command),
        ("gc", gc_command),
    ):
        group.command(name)(command)


def alias_command(
    task: Annotated[str, typer.Argument(help="The task.")],
    name: Annotated[str, typer.Argument(help="The alias, e.g. prod.")],
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="The version it shall mean.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    why: WhyOption = "",
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Point an alias at a version, or remove it."""
    from adapterhub.errors import UsageError

    if (ref is None) != remove:
        raise UsageError(f"give either a version for {task}@{name}, e.g. {task}@3, or --remove")
    version = open_registry(registry).alias(task, name, ref, why=why)
    if json:
        emit({"task": task, "alias": name, "version": version.version if version else None})
    elif version:
        say(f"{task}@{name} is now {version.ref} ({version.digest})")
    else:
        say(f"{task}@{name} is removed")


def promote_command(
    ref: RefArgument,
    alias: Annotated[str, typer.Option("--to", metavar="ALIAS", help="The alias that shall mean it.")] = "prod",
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="Only if this metric is not worse than now.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Labelled rows to measure both versions on.")
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, max=1.0, help="By how much it may be worse, 0.01 for a point.")
    ] = 0.0,
    why: WhyOption = "",
    bases: BasesOption = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Have an alias mean a version; with --metric and --data only if it is not worse than what the alias means now.

    Both answer the same rows, and the difference must be above minus the margin at 5% error. Rolling back is promoting
    the older version.
    """
    from adapterhub.errors import UsageError
    from adapterhub.pipeline.bases import Bases
    from adapterhub.pipeline.compare import Gate, promote

    if (metric is None) != (data is None):
        raise UsageError("give --metric and --data together: the metric is measured on those rows")
    gate = None if metric is None or data is None else Gate(metric, data, margin)
    with base_progress() as progress:
        version, found = promote(
            ref, alias, open_registry(registry), gate=gate, why=why, bases=Bases(bases or (), progress), watch=watched
        )
    if json:
        comparison = None if found is None else found.to_record()
        emit({"task": version.task, "alias": alias, "version": version.version, "comparison": comparison})
        return
    if found is not None:
        print_comparison(found, rows=0)
    say(f"{version.task}@{alias} is now {version.ref} ({version.digest})")


def delete_command(
    ref: RefArgument,
    why: WhyOption = "",
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Take a version out of its task's list; its files stay until gc, and publishing the same adapter brings it back.

    Refused while an alias means it. Its number is never given to another version.
    """
    version = open_registry(registry).delete(ref, why=why)
    if json:
        emit({key: version.to_record()[key] for key in ("task", "version", "digest", "path")})
    else:
        say(f"{version.ref} is deleted ({version.digest}); `adapterhub registry gc` frees its files")


def gc_command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")] = False,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Remove what killed writes left behind, and deleted versions that no other was made from."""
    freed = open_registry(registry).gc(dry_run=dry_run)
    if json:
        emit([each.to_record() for each in freed])
        return
    rows = [{"what": each.what, "where": each.path.name, "size": f"{each.size / 1e6:.2f} MB"} for each in freed]
    print_rows("what would go" if dry_run else "removed", rows, ("what", "where", "size"), json)
