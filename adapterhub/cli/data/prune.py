"""`adapterhub data prune`: keep the share of rows that is worth most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.shared import JsonOption, emit, say

from .common import (
    BaseOption,
    DecoderOption,
    FileArgument,
    KindOption,
    OutOption,
    PoolingOption,
    SeedOption,
    TargetOption,
    TemplateOption,
    check_target,
    features_of,
    influence_on,
    note_lineage,
    percent,
    read,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from adapterhub.curation.prune import Plan
    from adapterhub.curation.rows import Rows


MetricOption = Annotated[
    str,
    typer.Option(
        "--by", metavar="METRIC", help="auto, random, easy, hard, margin, loss, forgetting, prototype or influence."
    ),
]
FloorOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Least rows of a class, as a part of what a random share leaves it; 1, for influence 0.",
        show_default=False,
    ),
]


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("prune")(prune)


def prune(
    file: FileArgument,
    out: OutOption,
    keep: Annotated[str, typer.Option("--keep", metavar="SHARE", help="How much to keep: 0.5 or 50%.")],
    by: MetricOption = "auto",
    target: TargetOption = None,
    floor: FloorOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep hard rows first even where the labels look noisy.")
    ] = False,
    decoder: DecoderOption = None,
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
    rows first are refused where too many labels look wrong. `influence` keeps the rows that teach most of what those of
    --target ask, whatever their class.
    """
    from adapterhub.curation.output import check_output, dropped_path, write_split
    from adapterhub.curation.prune import check_metric, make_plan
    from adapterhub.curation.scores import INFLUENCE

    share = percent(keep, "--keep")
    check_output(out, file, target, drops=True)
    check_target(target, decoder, influence=by == INFLUENCE)
    check_metric(by, towards=target is not None)
    rows = read([file], kind, template)
    names, labels = rows.label_indices()
    features, name = features_of(rows.texts(), len(rows), base, pooling)
    if target is None:
        least = 1.0 if floor is None else floor
        plan = make_plan(features, labels, len(names), by, share, floor=least, force=force, seed=seed)
    else:
        plan, name = _towards(rows, features, target, share, floor or 0.0, decoder, base, pooling, seed)
    reasons: dict[int, dict[str, Any]] = {row: plan.reason(row) for row in plan.dropped()}
    kept, dropped = write_split(out, rows, reasons)
    figures: dict[str, Any] = {
        "by": plan.metric,
        "seed": seed,
        "keep": share,
        "trial": plan.accuracy(),
        "suspect": plan.noise,
    }
    if target is not None:
        figures["target"] = str(target)
    note_lineage(out, file, {"made_by": "data prune", "kept": kept, "dropped": dropped, **figures, "base": name})
    say(f"{kept:,} rows kept in {out} by {plan.metric}; {dropped:,} dropped, with reasons in {dropped_path(out)}")
    for line in plan.told():
        say(line)
    if as_json:
        emit({"kept": kept, "dropped": dropped, **figures, "out": str(out), "dropped_out": str(dropped_path(out))})


def _towards(
    rows: Rows,
    features: np.ndarray,
    target: Path,
    share: float,
    floor: float,
    decoder: str | None,
    base: str | None,
    pooling: str | None,
    seed: int,
) -> tuple[Plan, str]:
    """Return what is kept by influence, tried by heads on the target's own rows, and the base whose gradients told."""
    from dataclasses import replace

    import numpy as np

    from adapterhub.curation.influence import plan_by_influence, try_towards
    from adapterhub.data.prompt import input_text

    values, wanted, name = influence_on(rows, target, decoder)
    names, labels = rows.label_indices()
    plan = plan_by_influence(values, labels, share, floor=floor)
    texts = (input_text(row, rows.kind, rows.template) for row in wanted)
    asked, _ = features_of(texts, len(wanted), base, pooling)
    gold = np.array([names.index(row.label) if row.label in names else -1 for row in wanted])
    return replace(plan, trial=try_towards(plan.stays, features, labels, asked, gold, seed)), name
