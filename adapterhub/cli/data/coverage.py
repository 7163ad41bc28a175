"""`adapterhub data coverage`: how often each field of JSON answers occurs, and how well it is answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.shared import JsonOption, emit, say

from .common import percent

if TYPE_CHECKING:
    from adapterhub.curation.coverage import Coverage

# Names that are shown to people; --json has all.
_SHOWN = 5


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("coverage")(coverage)


def coverage(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="Rows that were learnt from, with completions.")],
    test: Annotated[Path, typer.Option("--test", metavar="FILE", help="Held-out rows with their completions.")],
    answers: Annotated[
        Path, typer.Option("--answers", metavar="FILE", help="What `adapterhub predict REF --input TEST` printed.")
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="F1", help="Say how many rows a field needs for this, such as 95%."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the fields of JSON completions in the training rows, and hold each field's F1 against the count.

    F1 is over the (field, value) pairs of the answers to the held-out rows. Fields that have not even half of the rows
    that are needed are listed with how many they lack. For labels, `data forecast` says the same.
    """
    from adapterhub.curation.coverage import cover_fields
    from adapterhub.data.files import read_examples
    from adapterhub.errors import DataError

    goal = None if target is None else percent(target, "--target")
    learnt = [str(row.completion) for row in read_examples(train, "generation")]
    gold = [str(row.completion) for row in read_examples(test, "generation")]
    given = _written(answers)
    if len(given) != len(gold):
        raise DataError(
            f"{answers}: {len(given)} answers to the {len(gold)} rows of {test}; make them with "
            f"`adapterhub predict REF --input {test}`"
        )
    found = cover_fields(learnt, gold, given, goal)
    for each in found.labels:
        share = "not measured" if each.accuracy is None else f"F1 {each.accuracy:.1%} on {each.measured:,}"
        say(f"  {each.label:<20} {each.train:>8,} rows, {share}")
    say(told_of(found, "field"))
    if as_json:
        record = found.to_record()
        fields, rare = ([_of_field(each) for each in record.pop(key)] for key in ("labels", "rare"))
        emit({"fields": fields, **record, "rare": rare})


def _of_field(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"field" if key == "label" else key: value for key, value in record.items()}


def _written(path: Path) -> list[str]:
    """Return the completions of a file of answers. Raises FileMissing, and DataError for other lines."""
    from adapterhub.data.readers import decode_lines
    from adapterhub.errors import DataError, FileMissing

    if not path.is_file():
        raise FileMissing(f"{path}: there is no such file")
    found = []
    with path.open("rb") as file:
        for number, line in decode_lines(file, str(path)):
            if not line.strip():
                continue
            try:
                found.append(str(json.loads(line)["completion"]))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f'{path}:{number}: expected {{"completion": "…"}}, as `adapterhub predict` prints for generation '
                    "tasks"
                ) from error
    return found


def told_of(coverage: Coverage, what: str) -> str:
    """Return how accuracy follows the rows of a label or a field, and which have few."""
    told = []
    measure = "accuracy" if what == "label" else "F1"
    if coverage.per_doubling is not None:
        told.append(
            f"twice the rows of a {what}: {100 * coverage.per_doubling:+.1f} points of its {measure}, on average"
        )
    if not coverage.fitted:
        told.append(
            f"{what}s have too few different counts for a curve; half of them have {coverage.usual:,} rows or more"
        )
    elif coverage.needed is None:
        told.append(
            f"the curve over all {what}s does not reach {coverage.target:.1%}; "
            f"half of them have {coverage.usual:,} rows or more"
        )
    else:
        told.append(f"a {what} needs about {coverage.needed:,} rows for {coverage.target:.1%}")
    rare = coverage.rare()
    told.append(f"{len(rare)} of {len(coverage.labels)} {what}s have not even half of that")
    told += [f"  {each.label}: {each.train:,} rows, {lacks:,} too few" for each, lacks in rare[:_SHOWN]]
    if len(rare) > _SHOWN:
        told.append(f"  and {len(rare) - _SHOWN} more, see --json")
    return "\n".join(told)
