"""`adapterhub data dedup`: leave out rows that say what another row says already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli.shared import JsonOption, emit, say

from .common import (
    BaseOption,
    FileArgument,
    KindOption,
    OutOption,
    PoolingOption,
    TemplateOption,
    features_of,
    note_lineage,
    read,
)

if TYPE_CHECKING:
    from adapterhub.curation.likes import Found
    from adapterhub.curation.rows import Rows

_SHOWN = 5


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("dedup")(dedup)


def dedup(
    file: FileArgument,
    out: OutOption,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE2", help="Leave out rows that are in this file, test rows say."),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise/--no-normalise", help="Texts equal but for case and punctuation too.")
    ] = True,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Texts that share most of their pieces too.")] = True,
    near_threshold: Annotated[
        float, typer.Option(min=0.3, max=1.0, help="Least Jaccard similarity of near duplicates.")
    ] = 0.85,
    features: Annotated[bool, typer.Option("--features", help="Rows whose features point the same way too.")] = False,
    feature_threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least cosine of such features.")] = 0.95,
    base: BaseOption = None,
    pooling: PoolingOption = None,
    kind: KindOption = None,
    template: TemplateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of FILE without duplicates; the others, with why and for which, go to OUT.dropped.jsonl.

    Of a group the best labelled stays: a gold label before soft ones before none, then the weightier, then the earlier.
    Rows that are alike but have different gold labels both stay unless their text is the same, and are told of.
    """
    from adapterhub.curation.duplicates import Rules, find_duplicates, reasons_of
    from adapterhub.curation.output import check_output, dropped_path, write_split
    from adapterhub.data.files import likely_kind
    from adapterhub.errors import UsageError

    sources = [file] if against is None else [against, file]
    check_output(out, *sources, drops=True)
    if against is not None and against.exists() and file.exists() and against.samefile(file):
        raise UsageError(f"--against is {file} itself, of which every row would go; leave it out")
    rows = read(sources, likely_kind(file) if kind is None else kind, template)
    held = sum(rows.counts[:-1])  # the rows of the other file stay
    vectors = features_of(rows.texts(), len(rows), base, pooling)[0] if features else None
    rules = Rules(normalise, near_threshold if near else None, feature_threshold if features else None)
    found = find_duplicates(rows, rules, held=held, features=vectors)
    reasons = reasons_of(found, rows, lambda row: str(against if row < held else file))
    kept, dropped = write_split(out, rows, reasons, held)
    counts = dict(sorted(found.counts().items()))
    made = {"made_by": "data dedup", "kept": kept, "dropped": dropped, "reasons": counts}
    note_lineage(out, file, {**made, "against": None if against is None else str(against)})
    leaked = sum(each.kept < held for each in found.dropped.values())
    say(f"{kept:,} rows kept in {out}; {dropped:,} dropped, with reasons in {dropped_path(out)}")
    for reason, count in counts.items():
        say(f"  {reason:<11}{count:>8,}")
    if leaked:
        say(f"LEAK: {leaked:,} rows of {file} are in {against} too, and were left out")
    _tell_conflicts(found, rows)
    if as_json:
        record = {"kept": kept, "dropped": dropped, "reasons": counts, "leaked": leaked}
        emit({**record, "conflicts": len(found.conflicts), "out": str(out), "dropped_out": str(dropped_path(out))})


def _tell_conflicts(found: Found, rows: Rows) -> None:
    """Say loudly which rows are alike and labelled differently."""
    if not found.conflicts:
        return
    say(f"CONFLICT: {len(found.conflicts):,} pairs of rows are alike and have different answers; look at them:")
    for (kept, row), how in list(found.conflicts.items())[:_SHOWN]:
        gone = "the second was dropped" if row in found.dropped else "both kept"
        say(f"  {how}, {gone}: {_shown(rows, kept)} and {_shown(rows, row)}")
    if len(found.conflicts) > _SHOWN:
        say(f"  and {len(found.conflicts) - _SHOWN:,} more")


def _shown(rows: Rows, row: int) -> str:
    text, label = rows.text(row), rows.labels[row]
    short = text if len(text) <= 60 else text[:59] + "…"
    return f"{short!r}{'' if label is None else f' ({label})'}"
