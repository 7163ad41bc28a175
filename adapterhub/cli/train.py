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
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files, trained in this order.")],
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
    """Return what was published, a row a version."""
    from rich.table import Table

    table = Table("version", "published", "measured on", "metrics", "examples/s", "tokens/s", "digest")
    for result in results:
        metrics = [f"{n} {m.value:.3f} ({m.low:.3f} to {m.high:.3f})" for n, m in result.metrics.items()]
        table.add_row(
            result.published.ref,
            "new" if result.published.created else "was there already",
            result.measured_on,
            "\n".join(metrics),
            f"{result.training.examples_per_second:.1f}",
            f"{result.training.tokens_per_second:.0f}",
            result.published.digest.removeprefix("sha256:")[:16],
        )
    return table
