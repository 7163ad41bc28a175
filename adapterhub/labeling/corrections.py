"""What people said of rows: a JSONL file that only grows, and what becomes of it: a voter `gold`, or corrected rows.

    {"id": "7", "old": "calm", "label": "angry", "by": "mara", "at": "2026-01-31T12:00:00Z", "text": "…"}

`old` is the label that the row had, null for none; the last word on a row counts. A line is on the disk before the next
question is asked; one that was cut by a crash is no answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.data.append import append_lines
from adapterhub.data.example import ANSWERS, Example, content_id
from adapterhub.errors import DataError, FileMissing

from .votes import GOLD, Votes


@dataclass(frozen=True)
class Correction:
    """The right label of a row, who said so, and when (UTC, ISO 8601)."""

    id: str
    old: str | None
    label: str
    by: str
    at: str
    text: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record; without `text` where there is none."""
        return {name: value for name, value in vars(self).items() if name != "text" or value is not None}


def read_corrections(path: Path) -> list[Correction]:
    """Return the corrections of a file in their order. Raises FileMissing, and DataError with the line.

    A last line without its end is a crash's and left out, unless it is whole.
    """
    if not path.is_file():
        raise FileMissing(f"{path}: there is no such file; `adapterhub label review` makes it")
    *lines, last = path.read_bytes().split(b"\n")
    found = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if last.strip():
        with suppress(DataError):
            found.append(_parse(last, f"{path}:{len(lines) + 1}"))
    return found


def append_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Add corrections to a file and force them to the disk; what a crash left of a last line is cut off before."""
    text = "".join(json.dumps(each.to_record(), ensure_ascii=False) + "\n" for each in corrections)
    append_lines(path, text.encode("utf-8"), keep=_is_whole)


def latest(corrections: Iterable[Correction]) -> dict[str, Correction]:
    """Return the last word on each row, by its id."""
    return {each.id: each for each in corrections}


def of_rows(corrections: Iterable[Correction], examples: Iterable[Example]) -> list[Correction]:
    """Return classification corrections under the ids of these rows; those of other rows stay as they are.

    A correction is of the row with its id, or else of the rows whose input has that hash, all of it or its text alone:
    what was served knows no ids, and other columns only where the task reads them.
    """
    said, rows_there = list(corrections), list(examples)
    ids = {row.id for row in rows_there}
    if all(each.id in ids for each in said):
        return said
    alike: dict[str, list[str]] = {}
    for row in rows_there:
        asked = {name: value for name, value in row.fields.items() if name not in ANSWERS["classification"]}
        for identity in {content_id(asked), content_id({"text": row.text})}:
            alike.setdefault(identity, []).append(row.id)
    found = []
    for each in said:
        rows = [each.id] if each.id in ids else alike.get(each.id, [each.id])
        found += [replace(each, id=row) for row in rows]
    return found


def with_gold(votes: Votes, corrections: Iterable[Correction]) -> Votes:
    """Return the votes with a voter `gold` that says what people said, and abstains elsewhere.

    Where there is such a voter, the corrections go over it. Corrections of other rows are left out.
    """
    columns: dict[str, Sequence[str | None]] = {name: votes.column(name) for name in votes.voters}
    said = latest(corrections)
    before = columns.get(GOLD, [None] * len(votes.ids))
    columns[GOLD] = [said[row].label if row in said else vote for row, vote in zip(votes.ids, before, strict=True)]
    return Votes.of(columns, votes.ids, votes.labels)


def corrected(examples: Iterable[Example], corrections: Iterable[Correction]) -> list[Example]:
    """Return classification examples with the labels that people gave; soft labels of such rows go, and ids stay."""
    said = latest(corrections)
    found = []
    for example in examples:
        if (each := said.get(example.id)) is None:
            found.append(example)
        else:
            fields = {**example.fields, "label": each.label}
            found.append(replace(example, fields=fields, probs=None, source=f"corrected by {each.by}"))
    return found


def lineage_of(path: Path, corrections: Sequence[Correction]) -> dict[str, Any]:
    """Return what a lineage says of a voter or of labels that came from a file of corrections."""
    said = [{name: value for name, value in each.to_record().items() if name != "text"} for each in corrections]
    canonical = json.dumps(said, sort_keys=True)
    return {
        "kind": "people",
        "hash": hashlib.sha256(canonical.encode()).hexdigest(),
        "where": path.name,
        "corrections": said,
    }


def _parse(line: bytes, where: str) -> Correction:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); each line is one correction") from error
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: {line[:80]!r} is not an object; expected a correction with id and label")
    for name in ("id", "label", "by", "at"):
        value = record.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {name} is {json.dumps(value)[:80]}; expected text")
    for name in ("old", "text"):
        if not isinstance(record.get(name), (str, type(None))):
            raise DataError(f"{where}: {name} is {json.dumps(record[name])[:80]}; expected text or null")
    old, text = record.get("old"), record.get("text")
    return Correction(record["id"], old, record["label"], record["by"], record["at"], text)


def _is_whole(line: bytes) -> bool:
    try:
        _parse(line, "")
    except DataError:
        return False
    return True
