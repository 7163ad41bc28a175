"""Votes: what each voter says of each row, a label or nothing, and the CSV file that holds them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapterhub.data.readers import decode_lines
from adapterhub.errors import DataError, FileMissing, UsageError
from adapterhub.registry.disk import replace_file

# In the matrix; in files an abstain is an empty cell, and in code that people write the constant ABSTAIN.
NO_VOTE = -1
# The voter that says what people said.
GOLD = "gold"
_ID = "id"


@dataclass(frozen=True, eq=False)
class Votes:
    """int32 `matrix` [rows, voters] of indices into `labels`, NO_VOTE where a voter abstains.

    `ids` name the rows, each once; `voters` and `labels` are named once each too.
    """

    ids: tuple[str, ...]
    voters: tuple[str, ...]
    labels: tuple[str, ...]
    matrix: np.ndarray

    def __post_init__(self) -> None:
        for what, names in (("row id", self.ids), ("voter", self.voters), ("label", self.labels)):
            if len(set(names)) < len(names):
                twice = next(name for name, count in Counter(names).items() if count > 1)
                raise UsageError(f"the {what} {twice!r} is there twice; name each once")
        if self.matrix.shape != (len(self.ids), len(self.voters)):
            raise UsageError(
                f"the votes have shape {self.matrix.shape}; expected {len(self.ids)} rows by {len(self.voters)} voters"
            )
        if self.matrix.size and not (self.matrix.min() >= NO_VOTE and self.matrix.max() < len(self.labels)):
            raise UsageError(f"the votes hold numbers outside {NO_VOTE} to {len(self.labels) - 1}")

    @classmethod
    def of(cls, columns: dict[str, Sequence[str | None]], ids: Iterable[str], labels: Iterable[str] = ()) -> Votes:
        """Return the votes of named columns of label names, None where a voter abstains.

        Labels are `labels` in their order, then any other that is voted for, sorted.
        """
        given = tuple(dict.fromkeys(labels))
        others = {vote for column in columns.values() for vote in column if vote is not None} - set(given)
        names = (*given, *sorted(others))
        index: dict[str | None, int] = {None: NO_VOTE, **{name: place for place, name in enumerate(names)}}
        rows = tuple(ids)
        matrix = np.full((len(rows), len(columns)), NO_VOTE, dtype=np.int32)
        for place, column in enumerate(columns.values()):
            matrix[:, place] = [index[vote] for vote in column]
        return cls(rows, tuple(columns), names, matrix)

    def only(self, labels: Sequence[str]) -> Votes:
        """Return these votes. Raises DataError where one is for none of `labels`, with the voter and the row."""
        strange = [place for place, name in enumerate(self.labels) if name not in labels]
        rows, voters = np.nonzero(np.isin(self.matrix, strange))
        if len(rows):
            said = self.labels[self.matrix[rows[0], voters[0]]]
            raise DataError(
                f"voter {self.voters[voters[0]]!r} says {said!r} of the row {self.ids[rows[0]]!r}, which is no label; "
                f"the labels are {', '.join(labels)}"
            )
        return self

    def column(self, voter: str) -> list[str | None]:
        """Return what one voter said of each row, None where it abstained."""
        votes = self.matrix[:, self.voters.index(voter)]
        return [None if vote == NO_VOTE else self.labels[vote] for vote in votes]


def read_votes(path: Path, labels: Iterable[str] = ()) -> Votes:
    """Read a CSV of votes: one column a voter, its name in the header; an empty cell is an abstain.

    A column `id` names the rows; without it they are numbered from 1. A lone voter abstains with an empty line, but
    for those at the end; of other files such lines are left out. Raises FileMissing, and DataError with the line.
    """
    if not path.is_file():
        raise FileMissing(f"{path}: there is no such file")
    with path.open("rb") as file:
        reader = csv.reader((line for _, line in decode_lines(file, str(path))), strict=True)
        try:
            header, rows = _read_rows(reader, path)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error
    voters = [name for name in header if name != _ID]
    if not voters:
        raise DataError(f"{path}:1: there is no voter; give one column a voter, its name in the header")
    if len(header) == 1 and ";" in header[0]:
        raise DataError(f"{path}:1: the only column is {header[0]!r}; separate columns by commas")
    if not rows:
        raise DataError(f"{path}: there are no rows; give one row an example")
    columns: dict[str, Sequence[str | None]] = {
        name: [row[place].strip() or None for _, row in rows] for place, name in enumerate(header) if name != _ID
    }
    ids = _ids(rows, header, path)
    return Votes.of(columns, ids, labels)


def write_votes(path: Path, votes: Votes) -> None:
    """Write votes as the CSV that `read_votes` reads, in one step: the old file stays or the new one is whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_ID, *votes.voters])
    names = (*votes.labels, "")  # NO_VOTE is the last
    for identity, row in zip(votes.ids, votes.matrix, strict=True):
        writer.writerow([identity, *(names[vote] for vote in row)])
    replace_file(path, text.getvalue())


def _read_rows(reader: Iterable[list[str]], path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    header: list[str] | None = None
    rows: list[tuple[int, list[str]]] = []
    silent: list[tuple[int, list[str]]] = []  # of a lone voter, unless they are what an editor left at the end
    for row in reader:
        line = getattr(reader, "line_num", 0)
        if not row:
            if header is not None and len(header) == 1:
                silent.append((line, [""]))
            continue
        if header is None:
            header = [name.strip() for name in row]
            _check_header(header, path, line)
        elif len(row) != len(header):
            raise DataError(f"{path}:{line}: the row has {len(row)} cells but the header has {len(header)}")
        else:
            rows += [*silent, (line, row)]
            silent.clear()
    if header is None:
        raise DataError(f"{path}: the file is empty; its first line names the voters")
    return header, rows


def _check_header(header: Sequence[str], path: Path, line: int) -> None:
    for place, name in enumerate(header):
        if not name:
            raise DataError(f"{path}:{line}: column {place + 1} has no name; name each voter")
        if name in header[:place]:
            raise DataError(f"{path}:{line}: the header names {name!r} twice; name each voter once")


def _ids(rows: Sequence[tuple[int, list[str]]], header: Sequence[str], path: Path) -> list[str]:
    if _ID not in header:
        return [str(number) for number in range(1, len(rows) + 1)]
    place = header.index(_ID)
    seen: dict[str, int] = {}
    for line, row in rows:
        identity = row[place].strip()
        if not identity:
            raise DataError(f"{path}:{line}: the id is empty; give each row one, or leave the column out")
        if identity in seen:
            raise DataError(f"{path}:{line}: the id {identity!r} is that of line {seen[identity]}; ids are unique")
        seen[identity] = line
    return list(seen)
