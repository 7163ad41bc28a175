"""What the commands of `adapterhub label` share: how balances and lists of labels are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.errors import DataError, FileMissing, UsageError

VotesArgument = Annotated[Path, typer.Argument(metavar="VOTES.csv", help="One column a voter, an empty cell abstains.")]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="auto, majority, dawid-skene or metal.", show_default=True)
]
BalanceOption = Annotated[
    str,
    typer.Option("--balance", metavar="A=0.5,B=0.5", help="Each label's share, if it is known.", show_default=False),
]
LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels", metavar="A,B,C", help="All labels, in their order; any other vote is an error.", show_default=False
    ),
]
GoldOption = Annotated[
    str | None,
    typer.Option("--gold", metavar="VOTER", help="Voter that is trusted outright; else one called gold, if any."),
]


def writable(out: Path, *read: Path | None) -> None:
    """Raise UsageError where `out` is a file that is read, FileMissing where it lies in no folder."""
    if not out.absolute().parent.is_dir():
        raise FileMissing(f"{out}: there is no folder {str(out.absolute().parent)!r} to write into; make it first")
    for each in read:
        if each is not None and each.exists() and out.exists() and out.samefile(each):
            raise UsageError(f"{out} is what is read here; write to another file")


def known_labels(found: Iterable[str], labels: Sequence[str]) -> None:
    """Raise DataError where votes name a label that is none of those there are."""
    if strange := sorted(set(found) - set(labels)):
        raise DataError(f"a voter names {strange[0]!r}, which is no label; the labels are {', '.join(labels)}")


def parse_balance(text: str) -> Mapping[str, float] | None:
    """Return the shares that "a=0.5,b=0.5" gives, None for an empty text. Raises UsageError for anything else."""
    if not text.strip():
        return None
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        name = name.strip()
        try:
            share = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(f"--balance has {part.strip()!r}; write each label with its share, as in a=0.3,b=0.7")
        if name in shares:
            raise UsageError(f"--balance names {name!r} twice; give each label one share")
        shares[name] = share
    return shares
