"""`adapterhub registry list|show|resolve|history|verify`: what there is, and proof that it is what was published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.shared import JsonOption, RegistryOption, emit, say

from .tables import BasesOption, RefArgument, open_registry, print_rows, print_table

if TYPE_CHECKING:
    from adapterhub.registry.store import Registry
    from adapterhub.registry.version import Version


def register(group: typer.Typer) -> None:
    """Add the commands to the group."""
    for name, command in (
        ("list", list_command),
        ("show", show_command),
        ("resolve", resolve_command),
        ("history", history_command),
        ("verify", verify_command),
    ):
        group.command(name)(command)


def list_command(
    task: Annotated[str | None, typer.Argument(help="Show this task's versions; else all tasks.")] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """List all tasks, or the versions of one."""
    store = open_registry(registry)
    if task is not None:
        rows = [version.to_record() for version in store.versions(task)]
        print_rows(f"versions of {task}", rows, ("ref", "digest", "aliases", "created_at"), json)
        return
    rows, broken = _summaries(store)
    print_rows(f"tasks in {store.root}", rows, ("task", "versions", "latest", "aliases", "base", "created_at"), json)
    if broken:
        raise typer.Exit(1)


def show_command(ref: RefArgument, registry: RegistryOption = None, json: JsonOption = False) -> None:
    """Show what a version was made of and how good it is."""
    store = open_registry(registry)
    version = store.resolve(ref)
    card = version.card().to_record()
    stale = _stale(version, card["labelling"], store) if card["labelling"] else {}
    if json:
        emit({**version.to_record(), "card": card, "stale": stale})
        return
    record = {**version.to_record(), **{key: card[key] for key in _SHOWN if card.get(key)}}
    if (output := version.spec().output) is not None:
        record["output"] = ": ".join(*output.to_record().items())
    if card["labelling"]:
        record["labelling"] = _labelling(card["labelling"])
    if stale:
        record["STALE"] = "; ".join(f"{voter}: {reason}" for voter, reason in stale.items())
    print_table(version.ref, [{"what": key, "is": value} for key, value in record.items()], ("what", "is"))


def resolve_command(ref: RefArgument, registry: RegistryOption = None, json: JsonOption = False) -> None:
    """Say which version a ref means now."""
    version = open_registry(registry).resolve(ref)
    if json:
        emit({key: version.to_record()[key] for key in ("task", "version", "digest", "path")})
    else:
        say(f"{version.ref}  {version.digest}  {version.path.absolute()}")


def history_command(
    task: Annotated[str, typer.Argument(help="The task.")],
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """List every move of a task's aliases: when, from which version to which, and why."""
    moves = [move.to_record() for move in open_registry(registry).history(task)]
    rows = [{**move, "from": move["before"] or "-", "to": move["version"] or "removed"} for move in moves]
    print_rows(f"aliases of {task}", moves if json else rows, ("at", "alias", "from", "to", "why"), json)


def verify_command(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="One version; else all.")] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Ask each version's probes again and compare with what it answered then.")
    ] = False,
    bases: BasesOption = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Hash the files again and compare with what was published; exit code 1 if anything is wrong.

    With --run the answers too: what no hash can see is a base, tokenizer, library or kernel that answers otherwise.
    """
    store = open_registry(registry)
    found = store.verify(ref)
    if run:
        from adapterhub.pipeline.bases import Bases
        from adapterhub.pipeline.probes import replay_all

        with base_progress() as progress:
            found += replay_all(store, ref, Bases(bases or (), progress))
    problems = [each for each in found if not each.note]
    if json:
        notes = [each.to_record() for each in found if each.note]
        emit({"ok": not problems, "problems": [each.to_record() for each in problems], "notes": notes})
    else:
        for each in found:
            say(f"{'note' if each.note else 'PROBLEM'}: {each.where}: {each.message}")
        say(f"{ref or store.root}: {f'{len(problems)} wrong' if problems else 'as published'}")
    if problems:
        raise typer.Exit(1)


# What people see of a card; --json gives all of it.
_SHOWN = (
    *("kind", "description", "labels", "metrics", "measured_on", "calibration", "data", "curation", "training"),
    *("packages", "git_commit", "parents", "source"),
)


def _stale(version: Version, labelling: Mapping[str, Any], store: Registry) -> dict[str, str]:
    """Return which voters were edited since; arrays and all come only where labels were made."""
    from adapterhub.labeling.stale import stale_voters

    return stale_voters(version.task, version.digest, labelling, lambda voter: store.resolve(voter).digest)


def _labelling(labelling: Mapping[str, Any]) -> str:
    """Return how labels were made, in one line; a stranger's card may say it in a way of its own."""
    parts = {name: labelling.get(name) for name in ("rows", "label_model", "voters")}
    rows, model, voters = (part if isinstance(part, Mapping) else {} for part in parts.values())
    return f"{rows.get('written', '?')} rows labelled by {model.get('model', '?')} from {', '.join(voters) or '?'}"


def _summaries(store: Registry) -> tuple[list[dict[str, Any]], bool]:
    """Return each task as a row, from its index alone, and whether some could not be read and were left out."""
    from adapterhub.errors import AdapterHubError

    rows, broken = [], False
    for task in store.tasks():
        try:
            rows.append(_summary(task, store.versions(task)))
        except AdapterHubError as error:
            say(f"Error: {error}")
            broken = True
    return rows, broken


def _summary(task: str, versions: list[Version]) -> dict[str, Any]:
    if not versions:
        return {"task": task, "versions": 0, "latest": None, "aliases": {}, "base": "", "created_at": ""}
    latest = versions[-1]
    return {
        "task": task,
        "versions": len(versions),
        "latest": latest.version,
        "aliases": {alias: version.version for version in versions for alias in version.aliases},
        "base": latest.base,
        "base_fingerprint": latest.base_fingerprint,
        "created_at": latest.created_at,
    }
