"""`adapterhub data prune`: keep the share of rows that is worth most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.shared import JsonOption, emit, say

from .common import (
    BaseOption,
    FileArgument,
    KindOption,
    OutOption,
    PoolingOption,
    SeedOption,
    TemplateOption,
    features_of,
    note_lineage,
    percent,
    read,
)

if TYPE_CHECKING:
    from adapterhub.curation.prune import Plan


# By how much a metric must be behind a random share for people to be warned.
_WORSE = 0.01


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("prune")(prune)


def prune(
    file: FileArgument,
    out: OutOption,
    keep: Annotated[str, typer.Option("--keep", metavar="SHARE", help="How much to keep: 0.5 or 50%.")],
    by: Annotated[
        str,
        typer.Option("--by", metavar="METRIC", help="auto, random, easy, hard, margin, loss, forgetting or prototype."),
    ] = "auto",
    floor: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least rows of a class, as a part of what a random share leaves it.")
    ] = 1.0,
    force: Annotated[
        bool, typer.Option("--force", help="Keep hard rows first even where the labels look noisy.")
    ] = False,
    base: BaseOption = None,
    pooling: PoolingOption = None,
    kind: KindOption = None,
    template: TemplateOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a share of the rows of FILE; the others, each with why, go to OUT.dropped.jsonl.

    `auto` tries easy and hard on held-out rows and takes the one that is surely better than a random share, else the
    random share. What each metric would cost is shown beside what the random share would. Metrics that keep hard
    rows first are refused where too many labels look wrong.
    """
    from adapterhub.curation.output import check_output, dropped_path, write_split
    from adapterhub.curation.prune import make_plan

    share = percent(keep, "--keep")
    check_output(out, file)
    rows = read([file], kind, template)
    names, labels = rows.label_indices()
    features, name = features_of(rows.texts(), len(rows), base, pooling)
    plan = make_plan(features, labels, len(names), by, share, floor=floor, force=force, seed=seed)
    reasons: dict[int, dict[str, Any]] = {row: plan.reason(row) for row in plan.dropped()}
    kept, dropped = write_split(out, rows, reasons)
    figures = {"by": plan.metric, "seed": seed, "keep": share, "trial": plan.accuracy(), "suspect": plan.noise}
    note_lineage(out, file, {"made_by": "data prune", "kept": kept, "dropped": dropped, **figures, "base": name})
    say(f"{kept:,} rows kept in {out} by {plan.metric}; {dropped:,} dropped, with reasons in {dropped_path(out)}")
    _tell(plan)
    if as_json:
        emit({"kept": kept, "dropped": dropped, **figures, "out": str(out), "dropped_out": str(dropped_path(out))})


def _tell(plan: Plan) -> None:
    if plan.noise is not None:
        say(f"{plan.noise:.1%} of the labels are suspect")
    if accuracy := plan.accuracy():
        tried = ", ".join(f"{metric} {value:.1%}" for metric, value in accuracy.items())
        say(f"accuracy of heads on held-out rows after keeping as much: {tried}")
        if accuracy.get(plan.metric, 1.0) < accuracy["random"] - _WORSE:
            say(f"WARNING: a random share does better here than {plan.metric}; name --by auto or random")
