"""`adapterhub recipe`: look recipes over before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import JsonOption, RegistryOption, SetOption, console, emit

if TYPE_CHECKING:
    from rich.console import Console

    from adapterhub.pipeline.check import Report, SplitReport
    from adapterhub.pipeline.estimate import Estimate

_LABELS_SHOWN = 8


def register(app: typer.Typer) -> None:
    """Add the command group to `app`."""
    group = typer.Typer(no_args_is_help=True, help="Look recipes over.")
    group.callback()(_group)
    group.command("check")(check)
    app.add_typer(group, name="recipe")


def _group() -> None:
    """Look recipes over before anything is trained."""


def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recipe files.", show_default=False)],
    overrides: SetOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate recipes and their data, count rows and labels, and estimate steps, size, memory and time.

    Nothing is trained or fetched. Exits with 1 where any of the recipes would not train.
    """
    from adapterhub.pipeline.check import check_recipe
    from adapterhub.registry.store import Registry

    screen = console()
    failed = False
    store = Registry(Registry.locate(registry))
    for file in recipes:
        report = check_recipe(file, overrides or (), store)
        failed |= not report.ok
        if as_json:
            emit(report.to_record())
        else:
            show(report, screen)
    if failed:
        raise typer.Exit(1)


def show(report: Report, screen: Console) -> None:
    """Print a report for people."""
    from rich.markup import escape

    verdict = "[green]fine[/]" if report.ok else "[red]would not train[/]"
    if report.ok and report.leaks:
        verdict = "[yellow]would train, but what is measured was learnt from[/]"
    about = f" {report.task} ({report.kind} on {report.base})" if report.task else ""
    screen.print(f"[bold]{escape(report.file)}[/]:{escape(about)} {verdict}", highlight=False)
    width = max(map(len, report.splits), default=0)
    for name, split in report.splits.items():
        screen.print(f"  {escape(_split(name.ljust(width), split))}", highlight=False)
    for problem in report.problems:
        screen.print(f"  [red]error[/]    {escape(problem)}", highlight=False)
    for warning in report.warnings:
        screen.print(f"  [yellow]warning[/]  {escape(warning)}", highlight=False)
    if report.note:
        screen.print(f"  [cyan]note[/]     {escape(report.note)}", highlight=False)
    if report.estimate:
        for name, value in _figures(report.estimate):
            screen.print(f"  {name:<9}{value}", highlight=False)


def _split(name: str, split: SplitReport) -> str:
    return f"{name:<11} {split.rows:>7,} rows  {split.source}{_labels(split.labels)}{_texts(split.texts)}"


def _labels(counts: Mapping[str, int]) -> str:
    """Say how many rows each label has, or, of many labels, between which bounds."""
    if not counts:
        return ""
    least, most = min(counts.values()), max(counts.values())
    if least == most or len(counts) > _LABELS_SHOWN:
        return f" ({len(counts)} labels, {least}{'' if least == most else f' to {most}'} each)"
    by_rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{label} {count}' for label, count in by_rows)})"


def _texts(counts: Mapping[str, int]) -> str:
    """Say of pairs how many different texts they are made of."""
    return f" ({', '.join(f'{count} {name}' for name, count in counts.items())})" if counts else ""


def _figures(estimate: Estimate) -> list[tuple[str, str]]:
    return [
        (
            "steps",
            f"{estimate.steps:,}, about {estimate.tokens:,} tokens; the longest row has {estimate.longest_row:,}",
        ),
        ("adapter", f"{estimate.adapter_parameters:,} parameters, {estimate.adapter_bytes / 1e6:.2f} MB"),
        ("memory", f"about {estimate.peak_memory_bytes / 1e9:.1f} GB at the peak (estimate, {estimate.precision})"),
        ("time", f"about {duration(estimate.seconds)} on this machine (estimate)"),
    ]


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
