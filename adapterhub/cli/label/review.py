"""`adapterhub label review` and `correct`: people look at rows, and what they said goes into votes or rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli.shared import JsonOption, console, emit, names_in
from adapterhub.errors import DataError, UsageError

from .options import writable

if TYPE_CHECKING:
    from adapterhub.labeling.review import Item

CorrectionsOption = Annotated[
    Path, typer.Option("--corrections", metavar="FILE", help="Where what people said is kept: JSONL that grows.")
]
_SKIP, _QUIT = ("", "s", "skip"), ("q", "quit")
_SHOWN = 9


def register(group: typer.Typer) -> None:
    """Add both commands to the group."""
    group.command("review")(review_command)
    group.command("correct")(correct_command)


def review_command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Soft labels (JSONL), votes (CSV), or what `label audit --out` wrote."),
    ],
    corrections: CorrectionsOption = Path("corrections.jsonl"),
    data: Annotated[
        Path | None, typer.Option("--data", metavar="ROWS", help="The rows with their texts, where FILE has none.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B", help="Labels to choose from, beside those in FILE.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Ask about so many rows at most.")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who answers; else the user's name.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="CSV", help="Write the queue, for people to fill in `label`.")
    ] = None,
    filled: Annotated[
        Path | None, typer.Option("--import", metavar="CSV", help="Take what people filled in of an exported queue.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Ask people about the rows most worth a look: doubtful labels, uncertain ones, rows on which voters disagree.

    Each answer is on the disk before the next question. Rows that were answered are not asked again.
    """
    from adapterhub.labeling.corrections import append_corrections, latest, read_corrections
    from adapterhub.labeling.review import labels_of, read_items, read_queue, read_rows, write_items

    writable(corrections, file, data, filled)
    if export is not None:
        writable(export, file, data, corrections)
    if export is not None and filled is not None:
        raise UsageError("give --export or --import, not both")
    items = read_queue(file, None if data is None else read_rows(data))
    names = list(dict.fromkeys([*names_in(labels), *labels_of(items)]))
    known = latest(read_corrections(corrections)) if corrections.exists() else {}
    who = by or _user()
    left = [item for item in items if item.id not in known][:limit]
    if export is not None:
        write_items(export, left)
        _told(
            f"{len(left)} rows are in {export}; fill in `label`, then give it back with --import", json, rows=len(left)
        )
    elif filled is not None:
        found = read_items(filled, who, names, known)
        append_corrections(corrections, found)
        strangers = len({each.id for each in found} - {item.id for item in items})
        others = f"; {strangers} are of rows that {file} does not ask about" if strangers else ""
        _told(
            f"{len(found)} corrections added to {corrections}{others}", json, corrections=len(found), unknown=strangers
        )
    else:
        count = _ask_all(left, names, corrections, who)
        _told(f"{count} of {len(left)} rows answered, in {corrections}", json, corrections=count)


def correct_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Classification rows; with --votes, votes.")],
    corrections: CorrectionsOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the rows (JSONL) or votes (CSV) go.")],
    votes: Annotated[
        bool, typer.Option("--votes", help="FILE has votes: add what people said as the voter `gold`.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put what people said into a file of rows as their labels, or into a file of votes as the voter `gold`."""
    from adapterhub.labeling.correct import correct_rows, correct_votes

    writable(out, file, corrections)
    count, strangers = (correct_votes if votes else correct_rows)(file, corrections, out)
    said = f"{count} corrections are in {out}"
    others = f"; {strangers} are of rows that {file} does not have" if strangers else ""
    _told(said + others, json, corrections=count, unknown=strangers)


def _ask_all(items: Sequence[Item], labels: Sequence[str], corrections: Path, by: str) -> int:
    """Ask about one item after another until there are no more, or the answers end; return how many were answered."""
    from adapterhub.labeling.corrections import Correction, append_corrections
    from adapterhub.registry.disk import utc_now

    screen, count = console(), 0
    for number, item in enumerate(items, start=1):
        choices = list(dict.fromkeys([*(label for label, _ in item.suggested), *labels]))
        screen.print(f"\n[{number}/{len(items)}] {item.why}", style="bold", markup=False, highlight=False)
        screen.print(item.text, markup=False, highlight=False)
        speaks = dict(item.suggested)
        keys = _keys(choices)
        for label in choices[:_SHOWN]:
            key = next((key for key, each in keys.items() if each == label), " ")
            share = "" if speaks.get(label) is None else f"  {speaks[label]:.2f}"
            now = "  (its label now)" if label == item.given else ""
            screen.print(f"  {key}  {label}{share}{now}", markup=False, highlight=False)
        answer = _answer(choices)
        if answer is None:
            break
        if answer:
            append_corrections(corrections, [Correction(item.id, item.given, answer, by, utc_now(), item.text or None)])
            count += 1
    return count


def _keys(choices: Sequence[str]) -> dict[str, str]:
    """Return what may be typed for the first labels: a number each, or none where labels are numbers themselves."""
    if any(label.isdecimal() for label in choices):
        return {}
    return {str(number): label for number, label in enumerate(choices[:_SHOWN], start=1)}


def _answer(choices: Sequence[str]) -> str | None:
    """Return the label that was chosen, nothing to skip, or None to stop; ask again for what is none of them."""
    screen, keys = console(), _keys(choices)
    while True:
        screen.print("label, or its number; s to skip, q to quit: ", end="", markup=False, highlight=False)
        line = sys.stdin.readline()
        given = line.strip()
        if given in choices:
            return given
        if not line or given in _QUIT:
            return None
        if given in _SKIP:
            return ""
        if given in keys:
            return keys[given]
        near = [label for label in choices if label.startswith(given)]
        if len(near) == 1:
            return near[0]
        known = ", ".join(near or choices)
        screen.print(f"{given!r} is no label; there are {known}", markup=False, highlight=False)


def _told(text: str, json: bool, **record: object) -> None:
    if json:
        emit(record)
    else:
        console().print(text, markup=False, highlight=False)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # a container without a user of that number
        raise DataError("there is no user's name here; say who answers with --by") from error
