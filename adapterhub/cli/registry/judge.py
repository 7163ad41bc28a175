"""`adapterhub registry compare|diff`: two versions beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.shared import JsonOption, RegistryOption, console, emit, say

from .tables import BasesOption, RefArgument, open_registry, print_table

if TYPE_CHECKING:
    from adapterhub.pipeline.compare import Comparison
    from adapterhub.pipeline.diff import Diff, SplitChange


def register(group: typer.Typer) -> None:
    """Add the commands to the group."""
    group.command("compare")(compare_command)
    group.command("diff")(diff_command)


def compare_command(
    first: RefArgument,
    second: RefArgument,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Labelled rows: JSONL, CSV or Parquet.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many differing rows to show.")] = 10,
    bases: BasesOption = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Measure two versions on the same rows: metrics, the difference with its interval, and the rows that differ."""
    from adapterhub.pipeline.bases import Bases
    from adapterhub.pipeline.compare import compare

    with base_progress() as progress:
        found = compare(first, second, data, open_registry(registry), bases=Bases(bases or (), progress), watch=watched)
    if json:
        emit(found.to_record())
    else:
        print_comparison(found, rows)


def diff_command(
    first: RefArgument, second: RefArgument, registry: RegistryOption = None, json: JsonOption = False
) -> None:
    """Show what two versions were made of and what came of it: recipe, rows, weights by layer, metrics."""
    from adapterhub.pipeline.diff import diff

    found = diff(first, second, open_registry(registry))
    if json:
        emit(found.to_record())
    else:
        _print_diff(found)


def watched(answers: Iterator[Any], total: int) -> Iterator[Any]:
    """Show how far an iterator of answers is."""
    from rich.progress import track

    return iter(track(answers, "Answering", total=total, console=console(), transient=True))


def print_comparison(found: Comparison, rows: int) -> None:
    """Print a comparison for people, with the first `rows` rows that differ."""
    first, second = found.metrics
    table = [
        {
            "metric": name,
            found.first.ref: _interval(first[name]),
            found.second.ref: _interval(second[name]),
            "difference": _interval(each, sign="+"),
        }
        for name, each in found.differences.items()
    ]
    print_table(
        f"{found.count} rows of {found.data}, 95% intervals",
        table,
        ("metric", found.first.ref, found.second.ref, "difference"),
    )
    test = found.mcnemar
    say(
        f"right in {found.second.ref} alone: {test.gained} rows; in {found.first.ref} alone: {test.lost}; "
        f"McNemar's exact p = {test.p:.3g}"
    )
    if rows and found.rows:
        shown = [
            {"row": each.where, "asked": each.asked[:60], "gold": each.gold, "first": each.first, "second": each.second}
            for each in found.rows[:rows]
        ]
        title = f"{len(shown)} of {len(found.rows)} rows that differ"
        print_table(title, shown, ("row", "asked", "gold", "first", "second"))


def _interval(value: Any, sign: str = "") -> str:
    return f"{value.value:{sign}.4f} ({value.low:{sign}.4f} to {value.high:{sign}.4f})"


def _print_diff(found: Diff) -> None:
    first, second = found.first.ref, found.second.ref
    sides = ("what", first, second)
    if found.recipe:
        rows = [{"what": key, first: a, second: b} for key, (a, b) in found.recipe.items()]
        print_table("recipe", rows, sides)
    else:
        say("the recipes say the same")
    print_table("data", [{"split": k, "rows": _split(each)} for k, each in found.data.items()], ("split", "rows"))
    metrics = [{"what": name, first: _number(a), second: _number(b)} for name, (a, b) in found.metrics.items()]
    print_table("metrics as published, each on its own rows", metrics, sides)
    layers = [
        {"layer": each.layer, first: _number(each.first), second: _number(each.second), "apart": _number(each.apart)}
        for each in found.layers
    ]
    print_table("norm of the weight change", layers, ("layer", first, second, "apart"))
    for name, apart in found.head.items():
        say(f"{name}: {'of another shape, or in one alone' if apart is None else f'{apart:.4g} apart'}")


def _split(change: SplitChange) -> str:
    counts = ["-" if side is None else str(side.get("rows", "?")) for side in (change.first, change.second)]
    if change.same:
        return f"{counts[0]}, the same"
    said = f"{counts[0]} became {counts[1]}"
    if change.rows is None:
        return f"{said} (which of them is not known: a version kept no rows)"
    moved = change.rows
    return f"{said}: {moved.added} added, {moved.removed} removed, {moved.relabelled} relabelled, {moved.same} the same"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
