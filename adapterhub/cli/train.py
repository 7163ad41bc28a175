"""`adapterhub train`: recipes become published versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import AdapterHubError

from .shared import JsonOption, RegistryOption, SetOption, console, emit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from adapterhub.pipeline.build import BuildResult
    from adapterhub.pipeline.probe import Probed
    from adapterhub.recipe import Recipe
    from adapterhub.registry.store import Registry


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(train)


def train(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="Recipe files.")],
    registry: RegistryOption = None,
    overrides: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of exactly this training, if there is one.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Train nothing: say what it would take, from five steps of each.")
    ] = False,
    tracker: Annotated[
        str | None,
        typer.Option(help="Send figures to a tracker that accelerate knows, such as tensorboard, wandb or mlflow."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the adapter of each recipe on its frozen base and publish it as a new version.

    Recipes of one base train at the same time over one copy of it. One that fails does not stop the others; the exit
    code is then 1. Ctrl-C publishes nothing half, and --resume goes on where a training was interrupted.
    """
    from adapterhub.recipe import load_recipe
    from adapterhub.registry.store import Registry

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
    if estimate:
        outcomes = _estimate(loaded, store, screen, as_json=as_json)
    else:
        outcomes = _train(loaded, store, screen, as_json=as_json, resume=resume, tracker=tracker)
    for recipe, outcome in zip(loaded, outcomes, strict=False):
        if isinstance(outcome, AdapterHubError):
            failed(str(recipe.path), outcome)
    if failures:
        screen.print(f"{len(failures)} of {len(recipes)} recipes failed: {', '.join(failures)}", markup=False)
        raise typer.Exit(1)


def _train(
    recipes: Sequence[Recipe], store: Registry, screen: Console, *, as_json: bool, resume: bool, tracker: str | None
) -> Sequence[object]:
    from adapterhub.pipeline.build import BuildResult, build_all

    from .train_progress import progress_for

    def tell(result: BuildResult) -> None:
        if as_json:
            emit(result.to_record())

    outcomes = build_all(recipes, store, progress_for(screen), resume=resume, tracker=tracker, tell=tell)
    results = [each for each in outcomes if isinstance(each, BuildResult)]
    if results:
        screen.print(summary(results))
    for result in results:
        screen.print(f"{result.published.ref}: log and plot in {result.journal}", markup=False, soft_wrap=True)
    return outcomes


def _estimate(recipes: Sequence[Recipe], store: Registry, screen: Console, *, as_json: bool) -> Sequence[object]:
    from adapterhub.pipeline.probe import Probed, probe_all

    from .train_progress import progress_for

    outcomes = probe_all(recipes, store, progress_for(screen))
    probed = [each for each in outcomes if isinstance(each, Probed)]
    if as_json:
        for each in probed:
            emit(each.to_record())
    if probed:
        screen.print(forecast(probed))
    return outcomes


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


def forecast(probed: list[Probed]) -> Table:
    """Return what trainings will take, a row a task."""
    from rich import box
    from rich.table import Table

    from .train_progress import duration

    table = Table(
        "task", "steps", "tokens", "time", "peak memory", "adapter", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for each in probed:
        found = each.probe
        below = f" (trunk {duration(found.trunk_seconds)})" if found.trunk_seconds else ""
        table.add_row(
            each.task,
            f"{found.steps}",
            f"{found.tokens:,}",
            f"{duration(found.seconds)}{below}",
            f"{found.peak_memory_bytes / 1e6:.0f} MB",
            f"{found.adapter_bytes / 1e6:.2f} MB",
        )
    return table
