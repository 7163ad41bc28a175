"""`adapterhub train`: recipes become published versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import AdapterHubError

from .shared import JsonOption, RegistryOption, SetOption, console, emit

if TYPE_CHECKING:
    from rich.table import Table

    from adapterhub.pipeline.build import BuildResult
    from adapterhub.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(train)


def train(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="Recipe files, trained in this order.")],
    registry: RegistryOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the adapter of each recipe on its frozen base and publish it as a new version.

    A recipe that fails does not stop the others; the exit code is then 1. Ctrl-C publishes nothing half.
    """
    from adapterhub.pipeline.build import build
    from adapterhub.recipe import load_recipe
    from adapterhub.registry.store import Registry

    from .train_progress import progress_for

    screen = console()
    failures: list[str] = []

    def failed(name: str, error: AdapterHubError) -> None:
        failures.append(name)
        screen.print(f"Error: {name}: {error}", style="red", markup=False, highlight=False)

    # All recipes are read before the first is trained: a typo in the last should not be found an hour later.
    loaded: list[Recipe] = []
    for path in recipes:
        try:
            loaded.append(load_recipe(path, overrides or ()))
        except AdapterHubError as error:
            failed(str(path), error)
    store = Registry(Registry.locate(registry))
    results: list[BuildResult] = []
    for recipe in loaded:
        try:
            results.append(build(recipe, store, progress_for(screen)))
        except AdapterHubError as error:
            failed(str(recipe.path), error)
        else:
            if as_json:
                emit(results[-1].to_record())
    if results:
        screen.print(summary(results))
    if failures:
        screen.print(f"{len(failures)} of {len(recipes)} recipes failed: {', '.join(failures)}", markup=False)
        raise typer.Exit(1)


def summary(results: list[BuildResult]) -> Table:
    """Return what was published, a row a metric."""
    from rich import box
    from rich.table import Table

    table = Table("version", "", "metric", "value", "95% interval", "split", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    for result in results:
        head = (result.published.ref, "new" if result.published.created else "as before")
        for name, metric in result.metrics.items():
            interval = f"{metric.low:.3f}-{metric.high:.3f}"
            table.add_row(*head, name, f"{metric.value:.3f}", interval, result.measured_on)
            head = ("", "")
    return table
