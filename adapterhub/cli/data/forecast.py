"""`adapterhub data forecast`: what more data would bring to a recipe's task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.shared import JsonOption, RegistryOption, SetOption, console, emit, say
from adapterhub.cli.train_progress import progress_for

from .common import BaseOption, percent
from .coverage import told_of

if TYPE_CHECKING:
    from rich.table import Table

    from adapterhub.curation.forecast import Need, Point
    from adapterhub.pipeline.forecast import TaskForecast
    from adapterhub.pipeline.rungs import Watch

# Labels that are shown to people; --json has all.
_SHOWN = 5


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("forecast")(forecast)


def forecast(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe file.")],
    target: Annotated[
        str | None, typer.Option("--target", metavar="ACCURACY", help="Say how many rows this takes, such as 95%.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="WHAT",
            help="adapters, or heads on stored features (seconds); else adapters where few rows are to be trained on.",
            show_default=False,
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", metavar="N,N,…", help="Training rows of the ladder; else halves of all rows."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=2, help="Subsets of each size; 5 for heads, else 3.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PLACE", help="A .png file, or a folder for forecast.png and .json.")
    ] = None,
    base: BaseOption = None,
    registry: RegistryOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Foretell the error at twice and four times the training rows, from trainings on nested parts of them.

    Intervals resample seeds and test rows together; nothing is said beyond four times the rows. The largest size is
    foretold from the others as a test. What has been trained is kept, so an interrupted forecast goes on. `--base` is
    whose features heads read.
    """
    from adapterhub.pipeline.forecast import Plan
    from adapterhub.pipeline.forecast import forecast as run
    from adapterhub.pipeline.forecast_plot import PLOT, RECORD, draw
    from adapterhub.registry.disk import replace_file
    from adapterhub.registry.store import Registry

    folder = _checked(out)
    goal = None if target is None else percent(target, "--target")
    plan = Plan(by, _numbers(sizes), seeds, goal, base)
    with _bars() as watch:
        found = run(recipe, overrides or (), plan, Registry(Registry.locate(registry)), progress_for(console()), watch)
    picture = (found.folder if folder is None else folder) / PLOT if out is None or folder is not None else out
    record = found.to_record() | {"plot": str(picture)}
    draw(found, picture)
    if folder is not None:
        replace_file(folder / RECORD, json.dumps(record, ensure_ascii=False, indent=2) + "\n")
    _tell(found)
    say(f"the curve is drawn in {picture}")
    if as_json:
        emit(record)


def _checked(out: Path | None) -> Path | None:
    """Return the folder that `--out` names, made where it is not there; None for a picture. Raises UsageError."""
    from adapterhub.errors import UsageError

    if out is None or (out.suffix.lower() == ".png" and not out.is_dir()):
        if out is not None and not out.absolute().parent.is_dir():
            raise UsageError(f"--out is {str(out)!r}, but there is no folder {str(out.absolute().parent)!r}; make it")
        return None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out is {str(out)!r}, which is no .png and cannot be a folder ({error.strerror})"
        ) from error
    return out


def _numbers(sizes: str | None) -> tuple[int, ...] | None:
    from adapterhub.errors import UsageError

    try:
        return None if sizes is None else tuple(int(each) for each in sizes.split(","))
    except ValueError as error:
        raise UsageError(f"--sizes {sizes}: expected numbers of rows, such as 50,100,200") from error


@contextmanager
def _bars() -> Iterator[Watch]:
    """Yield what hears how far something is; people see a bar for each, and none before the first is told of."""
    from rich.progress import Progress

    bars = Progress(console=console(), transient=True)
    known: dict[str, Any] = {}

    def watch(what: str, done: int, total: int) -> None:
        if what not in known:
            bars.start()
            known[what] = bars.add_task(what, total=total)
        bars.update(known[what], completed=done)

    try:
        yield watch
    finally:
        bars.stop()


def _tell(found: TaskForecast) -> None:
    """Say what was found, the uncertain parts as such."""
    from adapterhub.curation.learning_curve import FORMS

    forecast = found.forecast
    console().print(_table(found))
    say(f"curve: error = {forecast.curve}; its last term is where it flattens, not the least error there can be")
    if forecast.backtest is not None:
        test = forecast.backtest
        say(
            f"tested on {forecast.ladder.sizes[-1]:,} rows: {_percents(test.predicted)} foretold from fewer, "
            f"{test.measured:.1%} measured, {'within' if test.within else 'OUTSIDE'} the interval"
        )
        if test.best != "power":
            say(
                f"the form {FORMS[test.best]} foretold that better; at {forecast.limit:,} rows it says "
                f"{forecast.curves[test.best].at(forecast.limit):.1%}"
            )
    if found.need is not None:
        say(_needed(found.need, forecast.limit))
    if found.classes:
        say(_labels(found))
    if found.coverage is not None:
        say(told_of(found.coverage, "label"))


def _table(found: TaskForecast) -> Table:
    """Return what was measured, and what is foretold."""
    from rich import box
    from rich.table import Table

    forecast = found.forecast
    title = f"{found.task}: error on {found.measured:,} {found.measured_on} rows, {found.by} on {found.base}"
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
    for name in ("training rows", "error", "90% interval", ""):
        shown.add_column(name, no_wrap=True, justify="left" if not name else "right")
    most = forecast.ladder.sizes[-1]
    rows = [(each, "measured") for each in forecast.rungs()]
    rows += [(forecast.at(times * most), f"foretold, {times} times the rows") for times in (2, 4)]
    for point, how in rows:
        shown.add_row(f"{point.n:,}", f"{point.error:.1%}", f"{point.low:.1%} to {point.high:.1%}", how)
    return shown


def _percents(point: Point) -> str:
    return f"{point.error:.1%} ({point.low:.1%} to {point.high:.1%})"


def _needed(need: Need, limit: int) -> str:
    goal = f"an accuracy of {1 - need.error:.1%}"
    between = f"between {_rows(need.low)} and {_rows(need.high)} (beyond {limit:,} nothing is said)"
    if need.answer == "reached":
        return f"{goal} is reached with {need.rows:,} rows"
    if need.answer == "reachable":
        return f"{goal} takes about {need.rows:,} rows, {between}"
    if need.answer == "perhaps":
        return (
            f"{goal} is perhaps reached, from {_rows(need.low)} rows on at best; the curve does not get there with "
            f"{limit:,}, beyond which nothing is said"
        )
    return f"{goal} is not reachable by data alone, as far as four times the rows: change features, base or labels"


def _rows(rows: int | None) -> str:
    return "more than that" if rows is None else f"{rows:,}"


def _labels(found: TaskForecast) -> str:
    """Return the labels that most errors belong to."""
    most = found.forecast.ladder.sizes[-1]
    parts = []
    for each in found.classes[:_SHOWN]:
        now, later = each.forecast.rungs()[-1], each.forecast.at(4 * most)
        parts.append(f"  {each.label}: {now.error:.1%} on {each.measured} rows; {_percents(later)}")
    head = "labels with most errors, now and with four times the rows:"
    return "\n".join([head, *parts])
