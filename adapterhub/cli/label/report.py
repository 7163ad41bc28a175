"""`adapterhub label report`: who votes how, how well, and who copies whom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.registry.tables import print_table
from adapterhub.cli.shared import JsonOption, emit, names_in, say

from .options import BalanceOption, GoldOption, LabelsOption, ModelOption, VotesArgument, parse_balance, writable

if TYPE_CHECKING:
    from adapterhub.labeling.analysis import VotesReport


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("report")(report_command)


def report_command(
    votes: VotesArgument,
    gold_file: Annotated[
        Path | None,
        typer.Option("--gold-file", metavar="FILE", help="Some of the rows with their true labels, joined by id."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="REPORT.html", help="Write a page with plots too.")
    ] = None,
    model: ModelOption = "auto",
    balance: BalanceOption = "",
    labels: LabelsOption = "",
    one_label: Annotated[
        str | None, typer.Option("--one-label", metavar="LABEL", help="Of votes a|b|!c, look at this label, yes or no.")
    ] = None,
    gold: GoldOption = None,
    json: JsonOption = False,
) -> None:
    """Show what voters cover, where they contradict each other, how good they are, and which are copies."""
    from adapterhub.labeling.analysis import analyse
    from adapterhub.labeling.label_model import fit_votes
    from adapterhub.labeling.page import write_page

    if out is not None:
        writable(out, votes, gold_file)
    shares, names = parse_balance(balance), names_in(labels)
    read = _read(votes, [*names, *(shares or ())], one_label, gold)
    told = None if gold_file is None else _gold(gold_file, read.ids, one_label)
    found = analyse(fit_votes(read, model, shares, gold=gold), told)
    if out is not None:
        write_page(out, found, f"Votes of {votes.name}")
    if json:
        emit({**found.to_record(), "out": None if out is None else str(out)})
    else:
        _show(found, out)


def _read(votes: Path, labels: list[str], one_label: str | None, gold: str | None) -> Any:
    from adapterhub.errors import UsageError
    from adapterhub.labeling.label_model import split_votes
    from adapterhub.labeling.label_model.fit import trusted_voter
    from adapterhub.labeling.votes import read_votes

    if one_label is None:
        found = read_votes(votes, labels)
        return found.only(labels) if labels else found
    read = read_votes(votes)
    split = split_votes(read, gold=trusted_voter(read, gold))
    if one_label not in split:
        raise UsageError(f"no voter names the label {one_label!r}; the labels are {', '.join(split)}")
    return split[one_label]


def _gold(path: Path, ids: Any, one_label: str | None) -> dict[int, str]:
    from adapterhub.labeling.labelled import read_gold

    if one_label is None:
        return dict(read_gold(path, ids, "classification"))
    return {row: "yes" if one_label in labels else "no" for row, labels in read_gold(path, ids, "multilabel")}


def _show(found: VotesReport, out: Path | None) -> None:
    from adapterhub.labeling.page import short, summary, warnings

    rows = [
        {
            "voter": each.name,
            "votes for": "\n".join(f"{label} {count:,}" for label, count in each.polarity.items()) or "nothing",
            "coverage": f"{each.coverage:.1%}",
            "overlap": f"{each.overlap:.1%}",
            "conflict": f"{each.conflict:.1%}",
            "estimated": short(each.accuracy),
            "on gold": short(each.empirical),
        }
        for each in found.voters
    ]
    columns = ("voter", "votes for", "coverage", "overlap", "conflict", "estimated")
    print_table("Voters, 95% intervals", rows, (*columns, "on gold") if found.dev_rows else columns)
    for line in [*summary(found), *warnings(found)]:
        say(line)
    if out is not None:
        say(f"the page with plots: {out}")
