"""`adapterhub label fit`: votes become labels with probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.registry.tables import print_table
from adapterhub.cli.shared import JsonOption, emit, names_in, say

from .options import (
    BalanceOption,
    GoldOption,
    LabelsOption,
    ModelOption,
    VotesArgument,
    known_labels,
    parse_balance,
    writable,
)

if TYPE_CHECKING:
    from adapterhub.labeling.labelled import Written


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("fit")(fit_command)


def fit_command(
    votes: VotesArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Where the labelled rows go.")],
    model: ModelOption = "auto",
    balance: BalanceOption = "",
    labels: LabelsOption = "",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="ROWS", help="Rows the votes are of, joined by id: out becomes training data."),
    ] = None,
    keep_uncovered: Annotated[
        bool,
        typer.Option("--keep-uncovered", help="With --data, keep rows without any vote; their probs are the balance."),
    ] = False,
    multilabel: Annotated[
        bool, typer.Option("--multilabel", help="Rows have several labels; cells are a|b|!c, c being one that is not.")
    ] = False,
    gold: GoldOption = None,
    json: JsonOption = False,
) -> None:
    """Combine votes into one label a row, with probabilities, by a label model.

    auto takes MeTaL when --balance is given and Dawid-Skene otherwise; majority vote is always counted beside it.
    Voters that say the same for another reason than the label have one vote together.
    """
    from adapterhub.errors import UsageError
    from adapterhub.labeling.label_model import fit_multilabel, fit_votes, split_votes
    from adapterhub.labeling.labelled import fit_record, write_fit_lineage, write_labelled
    from adapterhub.labeling.votes import read_votes

    writable(out, votes, data)
    if keep_uncovered and data is None:
        raise UsageError("--keep-uncovered needs --data; without it every row is written")
    shares, names = parse_balance(balance), names_in(labels)
    if multilabel:
        read = read_votes(votes)
        if names:
            known_labels(split_votes(read, names), names)
        found: Any = fit_multilabel(read, model, shares, names, gold=gold)
    else:
        read = read_votes(votes, [*names, *(shares or ())])
        if names:
            read.only(names)
        found = fit_votes(read, model, shares, gold=gold)
    written = write_labelled(out, found, read, data, keep_uncovered=keep_uncovered)
    write_fit_lineage(out, found, read, votes, data, written)
    record = {
        **fit_record(found),
        "out": str(out),
        "written": written.rows,
        "left_out": {"uncovered": written.uncovered, "without_votes": written.without_votes},
    }
    if json:
        emit(record)
    else:
        _show(record, written, out)


def _show(record: dict[str, Any], written: Written, out: Path) -> None:
    for name, each in record.get("by_label", {"": record}).items():
        _show_model(f"{name}: " if name else "", each)
    say(
        f"{record['uncovered']:,} of {record['rows']:,} rows have no vote; "
        f"the majority vote differs on {record['majority_differs']:.1%} of rows"
    )
    left = written.uncovered + written.without_votes
    say(f"{written.rows:,} rows in {out}" + (f", {left:,} without a vote left out" if left else ""))


def _show_model(about: str, record: dict[str, Any]) -> None:
    rows = [
        {"voter": voter, "coverage": f"{each['coverage']:.1%}", "accuracy": _number(each["accuracy"])}
        for voter, each in record["voters"].items()
    ]
    print_table(f"{about}accuracies by {record['model']} ({record['why']})", rows, ("voter", "coverage", "accuracy"))
    balance = ", ".join(f"{label} {each:.3f}" for label, each in record["balance"].items())
    say(f"{about}balance ({record['balance_source']}): {balance}; {record['ties']:,} ties")
    for cluster in record["clusters"]:
        say(f"{about}one vote together, since they say the same: {', '.join(cluster)}")
    if record["near_constant"]:
        say(f"{about}nearly always the same label, which tells little: {', '.join(record['near_constant'])}")
    if record["clusters_in_doubt"]:
        say(f"{about}which voters are copies is not clear from their votes; gold labels for some rows would tell")
    if record["converged"] is False:
        say(f"{about}the model had not settled after {record['steps']:,} steps")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
