"""`adapterhub sweep`: which settings of a recipe are best, found on little data first."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import UsageError

from .shared import JsonOption, RegistryOption, SetOption, console, emit

if TYPE_CHECKING:
    from rich.table import Table

    from adapterhub.pipeline.sweep import Sweep


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(sweep)


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe file to vary.")],
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V,V,…", help="Try all of these values; may be repeated.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=LOW..HIGH[:log|:int|:int-log]", help="Draw from a range; may be repeated."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=2, help="How many settings to try; all of a grid without it.", show_default=False)
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Fractions of the training rows, rising: all settings on the first, fewer on each next.")
    ] = "0.11,0.33,1",
    keep: Annotated[float, typer.Option(help="The part of the settings that goes on to the next budget.")] = 0.34,
    seed: Annotated[int, typer.Option(help="Draws settings and rows.")] = 0,
    registry: RegistryOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find good settings of a recipe: many on few rows, the best of them on more, the last on all.

    Settings train side by side over one base in memory; nothing is published. What has been run is kept, so the same
    sweep goes on where it was interrupted.
    """
    from adapterhub.pipeline.space import Space
    from adapterhub.pipeline.sweep import Plan, as_overrides
    from adapterhub.pipeline.sweep import sweep as run
    from adapterhub.registry.store import Registry

    from .train_progress import QuietProgress

    screen = console()
    try:
        parts = tuple(float(part) for part in budgets.split(","))
    except ValueError as error:
        raise UsageError(f"--budgets {budgets}: expected fractions of the rows, such as 0.1,0.3,1") from error
    plan = Plan(Space.parse(grid or (), search or ()), trials, parts, keep, seed)
    found = run(recipe, overrides or (), plan, Registry(Registry.locate(registry)), QuietProgress(screen))
    if as_json:
        emit(found.to_record())
    screen.print(table(found))
    for each in found.rankings:
        if each.correlation is not None:
            screen.print(
                f"rank correlation between {each.rows} and {found.rows[-1]} rows: {each.correlation:.2f} "
                f"(Spearman, {each.compared} settings that ran on both)"
            )
    best = [part for each in as_overrides(found.trials[0].settings) for part in ("--set", each)]
    screen.print(f"best: {shlex.join(['adapterhub', 'train', str(recipe), *best])}", markup=False, soft_wrap=True)
    screen.print(f"results and plot in {found.folder}", markup=False, soft_wrap=True)


def table(found: Sweep) -> Table:
    """Return the settings from best to worst, with the value on each number of rows."""
    from rich import box
    from rich.table import Table

    keys = list(found.trials[0].settings)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{found.task}: validation {found.metric}")
    for name in (*keys, *(f"{rows} rows" for rows in found.rows)):
        shown.add_column(name, no_wrap=True)
    for trial in found.trials:
        values = [trial.values.get(rows) for rows in found.rows]
        cells = ["" if value is None else f"{abs(value):.4f}" for value in values]
        if trial.error is not None:
            cells[0] = "failed"
        shown.add_row(*(str(trial.settings[key]) for key in keys), *cells)
    return shown
