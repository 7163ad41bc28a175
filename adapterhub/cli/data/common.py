"""What the commands of `adapterhub data` share: options, reading with a bar, and the features of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.shared import console

if TYPE_CHECKING:
    import numpy as np

    from adapterhub.base.vector_store import Report
    from adapterhub.curation.rows import Rows
    from adapterhub.data.example import Example
    from adapterhub.recipe import Kind

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Rows: JSONL, CSV or Parquet.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write rows, a .jsonl file.")]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", metavar="NAME", help="Base whose features say what rows are like.", show_default=False),
]
PoolingOption = Annotated[
    str | None, typer.Option("--pooling", metavar="NAME", help="mean, last or cls; else the base's own.")
]
KindOption = Annotated[
    str | None, typer.Option("--kind", metavar="KIND", help="Kind of task; else what the first row looks like.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="TEXT", help='What the base reads, as a recipe\'s prompt.template: "{text}".'),
]
TargetOption = Annotated[
    Path | None,
    typer.Option(
        "--target", metavar="FILE", help="Rows with answers to be good at, for influence.", show_default=False
    ),
]
DecoderOption = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        metavar="NAME",
        help="Base whose gradients tell influence; else smollm2-135m-instruct.",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of what is drawn.")]


def read(paths: list[Path], kind: str | None = None, template: str | None = None) -> Rows:
    """Read rows. Raises UsageError for a kind there is not, and as `Rows.read` does."""
    from adapterhub.curation.rows import Rows

    with console().status("Reading rows"):
        return Rows.read(paths, _kind(kind), template)


def features_of(texts: Iterable[str], total: int, base: str | None, pooling: str | None) -> tuple[np.ndarray, str]:
    """Return features float32 [texts, dim] of a base, fetched where need be, and the base's name."""
    from adapterhub.base.feature_store import DEFAULT_BASE, stored_features
    from adapterhub.base.source import open_base

    with base_progress() as progress:
        opened = open_base(DEFAULT_BASE if base is None else base, progress=progress)
    with bar("Reading features", total) as report:
        return stored_features(opened, texts, pooling, progress=report), opened.name


def influence_on(rows: Rows, target: Path, decoder: str | None) -> tuple[np.ndarray, list[Example], str]:
    """Return the influence of each row towards those of `target`, float32 [rows], the target, and the base's name."""
    from adapterhub.base.source import open_base
    from adapterhub.pipeline.influence import DEFAULT_DECODER, influence_of, read_target

    wanted = read_target(target, rows.kind)
    with base_progress() as progress:
        opened = open_base(DEFAULT_DECODER if decoder is None else decoder, progress=progress)
    with bar("Gradients of rows", len(rows)) as report:
        values = influence_of(opened, rows.examples(), wanted, rows.kind, rows.template, report)
    return values, wanted, opened.name


def check_target(target: Path | None, decoder: str | None, *, influence: bool) -> None:
    """Raise UsageError where influence has no target, or something else has one."""
    from adapterhub.errors import UsageError

    if influence and target is None:
        raise UsageError("--by influence: name the rows to be good at with --target FILE")
    if not influence and (target is not None or decoder is not None):
        raise UsageError("--target and --decoder are for --by influence; add that, or leave them out")


@contextmanager
def bar(title: str, total: int) -> Iterator[Report]:
    """Yield what hears how many are done; people see a bar."""
    from rich.progress import Progress

    with Progress(console=console(), transient=True) as bars:
        current: Any = bars.add_task(title, total=total)

        def report(done: int) -> None:
            bars.update(current, completed=done)

        yield report


def note_lineage(path: Path, source: Path, made: dict[str, Any]) -> None:
    """Write beside `path` how it came of `source`, with what is known of how that was made."""
    from adapterhub.labeling.lineage import file_hash, read_lineage, write_lineage

    before = {"file": source.name, "sha256": file_hash(source), "lineage": read_lineage(source)}
    write_lineage(path, {**made, "source": before})


def percent(text: str, option: str) -> float:
    """Return the share that "0.5" or "50%" says. Raises UsageError."""
    from adapterhub.errors import UsageError

    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UsageError(f"{option} is {text!r}; write a share above 0 and up to 1, such as 0.5 or 50%")
    return share


def _kind(name: str | None) -> Kind | None:
    from typing import get_args

    from adapterhub.errors import UsageError
    from adapterhub.recipe import Kind

    if name is not None and name not in get_args(Kind):
        raise UsageError(f"--kind is {name!r}; it may be {', '.join(get_args(Kind))}")
    return name  # type: ignore[return-value]
