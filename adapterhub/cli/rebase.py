"""`adapterhub rebase`: tasks made anew on another base, beside what they were."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import AdapterHubError

from .registry.judge import watched
from .shared import JsonOption, RegistryOption, SetOption, console, emit

if TYPE_CHECKING:
    from rich.table import Table

    from adapterhub.pipeline.rebase import Rebased


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(rebase)


def rebase(
    refs: Annotated[list[str], typer.Argument(metavar="REF", help="Versions to make anew, by ref.")],
    base: Annotated[str, typer.Option("--base", metavar="NAME", help="The new base.")],
    old_bases: Annotated[
        list[str] | None,
        typer.Option("--old-base", metavar="NAME", help="Where the old base is, if it was a folder. Repeatable."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FOLDER", help="Where the data lie; else here and in recipes. Repeatable."),
    ] = None,
    suffix: Annotated[
        str | None, typer.Option("--suffix", metavar="TEXT", help="New tasks are TASK-TEXT; else TASK-BASE.")
    ] = None,
    changed_data: Annotated[
        bool, typer.Option("--changed-data", help="Take the rows as they are now, though the card records others.")
    ] = False,
    overrides: SetOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train tasks again on a new base, from the recipes and data that their cards record, and compare.

    Old and new answer the same held-out rows. The new versions belong to tasks of their own, and name the old ones as
    their parents.
    """
    from adapterhub.pipeline.bases import Bases
    from adapterhub.pipeline.rebase import Rebased, plan
    from adapterhub.pipeline.rebase import rebase as run
    from adapterhub.registry.store import Registry

    from .train_progress import progress_for

    screen, store = console(), Registry(Registry.locate(registry))
    bases = Bases([base, *(old_bases or [])])
    moves = plan(
        refs,
        base,
        store,
        bases=bases,
        folders=data or [Path(), Path("recipes")],
        suffix=suffix,
        overrides=overrides or (),
        changed_data=changed_data,
    )
    tell = (lambda each: emit(each.to_record())) if as_json else (lambda _: None)
    outcomes = run(moves, store, progress_for(screen), bases=bases, watch=watched, tell=tell)
    done = [each for each in outcomes if isinstance(each, Rebased)]
    for each in done:
        screen.print(table(each))
    failures = [
        (move.old.ref, each) for move, each in zip(moves, outcomes, strict=True) if isinstance(each, AdapterHubError)
    ]
    for ref, error in failures:
        screen.print(f"Error: {ref}: {error}", style="red", markup=False, highlight=False)
    if failures:
        raise typer.Exit(1)


def table(rebased: Rebased) -> Table:
    """Return old beside new, a row a metric: what tells whether to move."""
    from rich import box
    from rich.table import Table

    title = f"{rebased.old.ref} to {rebased.new.published.ref}"
    found = Table("metric", "old", "new", "difference", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    comparison = rebased.comparison
    differences = {} if comparison is None else comparison.differences
    for name, metric in rebased.metrics[1].items():
        old, difference = rebased.metrics[0].get(name), differences.get(name)
        row = [name, "-" if old is None else f"{old.value:.3f}", f"{metric.value:.3f}"]
        if difference is not None:
            row.append(f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})")
        elif old is not None:
            row.append(f"{metric.value - old.value:+.3f}")
        found.add_row(*row)
    if comparison is not None:
        test = comparison.mcnemar
        found.add_row("rows only one has right", str(test.lost), str(test.gained), f"McNemar's exact p = {test.p:.3g}")
        rates = [comparison.count / seconds for seconds in comparison.seconds]
        found.add_row(
            "rows answered a second", f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{rates[1] / rates[0]:.2f} times"
        )
    return found
