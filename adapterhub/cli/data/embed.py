"""`adapterhub data embed`: what a base's features of rows are, computed once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.shared import JsonOption, emit, say

from .common import BaseOption, FileArgument, KindOption, PoolingOption, TemplateOption, features_of, read


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("embed")(embed)


def embed(
    file: FileArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write them as a .npy array, a row a row.")
    ] = None,
    base: BaseOption = None,
    pooling: PoolingOption = None,
    kind: KindOption = None,
    template: TemplateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute a base's features of every row and keep them, so that the other commands need not.

    Texts that are known are not computed again; what an interruption leaves is kept. The default base is
    all-minilm-l6-v2.
    """
    from adapterhub.errors import UsageError

    if out is not None and out.suffix != ".npy":
        raise UsageError(f"--out is {str(out)!r}; features are written as a .npy file")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out is {str(out)!r}, but there is no folder {str(out.absolute().parent)!r}; make it first")
    rows = read([file], kind, template)
    features, name = features_of(rows.texts(), len(rows), base, pooling)
    if out is not None:
        _write(out, features)
    say(f"{len(rows):,} rows, {features.shape[1]} features each by {name}{'' if out is None else f', in {out}'}")
    if as_json:
        emit({"rows": len(rows), "dim": features.shape[1], "base": name, "out": None if out is None else str(out)})


def _write(path: Path, features: object) -> None:
    import numpy as np

    from adapterhub.registry.disk import replacing

    with replacing(path) as temporary, temporary.open("xb") as file:
        np.save(file, features)  # type: ignore[arg-type]
