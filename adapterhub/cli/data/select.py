"""`adapterhub data select`: which rows of a pool to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.shared import JsonOption, emit, say

from .common import (
    BaseOption,
    KindOption,
    OutOption,
    PoolingOption,
    SeedOption,
    TemplateOption,
    features_of,
    note_lineage,
    read,
)


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("select")(select)


def select(
    pool: Annotated[Path, typer.Argument(metavar="POOL", help="Rows to choose from; labels they have are not read.")],
    out: OutOption,
    budget: Annotated[int, typer.Option("--budget", min=1, metavar="N", help="How many rows to choose.")] = 100,
    labelled: Annotated[
        Path | None, typer.Option("--labelled", metavar="FILE", help="Rows whose labels are known already.")
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="RULE", help="auto, uncertainty, diversity, typicality or random.")
    ] = "auto",
    base: BaseOption = None,
    pooling: PoolingOption = None,
    kind: KindOption = None,
    template: TemplateOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of POOL that are worth labelling next, the first most.

    Texts that come twice, or are labelled already, are chosen once or not at all. `auto` takes uncertain rows that are
    unlike each other once there are five labelled rows a class, and typical rows before that.
    """
    import numpy as np

    from adapterhub.curation.clusters import picked
    from adapterhub.curation.duplicates import Rules, find_duplicates
    from adapterhub.curation.output import check_output, write_rows
    from adapterhub.curation.select import check_budget
    from adapterhub.curation.select import select as choose

    sources = [pool] if labelled is None else [labelled, pool]
    check_output(out, *sources)
    rows = read(sources[:1], kind, template)
    known = 0
    if labelled is not None:
        known = len(rows)
        rows = read(sources, rows.kind, template)
    again = find_duplicates(rows, Rules(near=None), held=known).dropped
    left = np.array([row for row in range(known, len(rows)) if row not in again], dtype=np.int64)
    check_budget(by, budget, len(left))
    features, _ = features_of(rows.texts(), len(rows), base, pooling)
    labels = rows.label_indices()[1][:known]
    sure = np.flatnonzero(labels >= 0)
    chosen, rule = choose(
        picked(features, left), budget, by, labelled=picked(features, sure), labels=labels[sure], seed=seed
    )
    write_rows(out, rows, (int(left[row]) for row in chosen))
    figures = {"selected": len(chosen), "pool": len(rows) - known, "by": rule, "seed": seed}
    note_lineage(out, pool, {"made_by": "data select", **figures})
    say(f"{len(chosen):,} of {len(rows) - known:,} rows chosen by {rule}, the first most, in {out}")
    if as_json:
        emit({**figures, "out": str(out)})
