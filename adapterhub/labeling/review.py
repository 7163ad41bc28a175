"""The rows most worth a look by people, from soft labels, votes or an audit; as a queue, as CSV out and back in."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.data.readers import read_csv, read_jsonl
from adapterhub.errors import DataError, FileMissing, UsageError
from adapterhub.registry.disk import replace_file, utc_now

from .corrections import Correction
from .votes import NO_VOTE, Votes, read_votes

COLUMNS = ("id", "label", "given", "suggested", "score", "why", "text")
# What heads a queue that an audit wrote, and no votes.
_AUDIT = {"id", "given", "suggested", "score"}


@dataclass(frozen=True)
class Item:
    """A row to look at: `suggested` labels, the likeliest first, each with what speaks for it (0 to 1, or None).

    `score` is how much it is worth a look; `given` the label it has now.
    """

    id: str
    text: str
    given: str | None
    suggested: tuple[tuple[str, float | None], ...]
    score: float
    why: str


def read_queue(path: Path, rows: Mapping[str, Example] | None = None) -> list[Item]:
    """Return the rows of a file that most deserve a look, first those that deserve it most.

    A .jsonl file has soft labels (`probs`); a .csv file is what an audit wrote or else votes. `rows` by id have the
    texts where the file does not. Raises FileMissing, DataError, UsageError where texts are wanting.
    """
    rows = rows or {}
    if path.suffix.lower() == ".jsonl":
        items = _from_probs(path, rows)
    elif path.suffix.lower() == ".csv":
        header = _header(path)
        items = _from_audit(path) if header >= _AUDIT else from_votes(read_votes(path), rows)
    else:
        raise UsageError(f"{path}: expected soft labels (.jsonl), votes (.csv), or the queue of an audit (.csv)")
    return sorted(items, key=lambda item: -item.score)


def from_votes(votes: Votes, rows: Mapping[str, Example]) -> list[Item]:
    """Return a row for each on which voters disagree, by the entropy of their votes; then those without any vote."""
    found = []
    for row, (identity, said) in enumerate(zip(votes.ids, votes.matrix, strict=True)):
        counts = Counter(votes.labels[vote] for vote in said if vote != NO_VOTE)
        if len(counts) == 1:
            continue
        example = _row(rows, identity, f"row {row + 1} of the votes")
        total = counts.total()
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        shares = tuple((label, count / total) for label, count in ranked)
        why = "voters disagree" if counts else "no voter"
        found.append(Item(identity, example.text, example.label, shares, _entropy([share for _, share in shares]), why))
    return found


def labels_of(items: Iterable[Item]) -> list[str]:
    """Return every label that items have or suggest, sorted."""
    found = {label for item in items for label, _ in item.suggested}
    return sorted(found | {item.given for item in items if item.given is not None})


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Write a queue as CSV in one step; the column `label` is empty, for people to fill."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in items:
        suggested = "|".join(label for label, _ in item.suggested)
        writer.writerow([item.id, "", item.given or "", suggested, f"{item.score:.4f}", item.why, item.text])
    replace_file(path, text.getvalue())


def read_items(path: Path, by: str, labels: Collection[str], known: Mapping[str, Correction]) -> list[Correction]:
    """Return what people filled in of a queue written as CSV; `known` are earlier corrections, not given again.

    Raises DataError for a label that is not one of `labels` (any will do where there are none).
    """
    if not path.is_file():
        raise FileMissing(f"{path}: there is no such file; give the one that --export wrote")
    now, found = utc_now(), []
    for where, record in read_csv(path):
        cells: dict[str, Any] = {name: (value or "").strip() for name, value in record.items() if name != "text"}
        if not {"id", "label"} <= cells.keys():
            raise DataError(f"{path}: there is no column 'id' or 'label'; give back the file that --export wrote")
        if not cells["label"]:
            continue
        if not cells["id"]:
            raise DataError(f"{where}: the id is empty; give back the rows that --export wrote")
        if labels and cells["label"] not in labels:
            known_labels = ", ".join(sorted(labels)[:10])
            raise DataError(f"{where}: unknown label {cells['label']!r}; the labels are {known_labels}")
        before = known.get(cells["id"])
        if before is None or before.label != cells["label"]:
            old, text = cells.get("given") or None, record.get("text") or None
            found.append(Correction(cells["id"], old, cells["label"], by, now, text))
    return found


def _from_probs(path: Path, rows: Mapping[str, Example]) -> list[Item]:
    if not path.is_file():
        raise FileMissing(f"{path}: there is no such file")
    found = []
    for where, record in read_jsonl(path):
        probs = record.get("probs") if isinstance(record, Mapping) else None
        if not isinstance(probs, Mapping) or not probs or not all(_is_chance(each) for each in probs.values()):
            raise DataError(f'{where}: there are no soft labels; expected {{"id": "…", "probs": {{"label": 0.9, …}}}}')
        if record.get("id") is None:
            raise DataError(f"{where}: there is no id; a correction names the row by it")
        identity = str(record["id"])
        text = record["text"] if isinstance(record.get("text"), str) else _row(rows, identity, where).text
        ranked = tuple(sorted(probs.items(), key=lambda pair: (-pair[1], pair[0])))
        score = 1 - ranked[0][1] + (ranked[1][1] if len(ranked) > 1 else 0.0)
        given = record.get("label")
        found.append(Item(identity, text, None if given is None else str(given), ranked, score, "uncertain"))
    return found


def _from_audit(path: Path) -> list[Item]:
    found = []
    for where, record in read_csv(path):
        try:
            score = float(record["score"])
        except ValueError as error:
            raise DataError(f"{where}: score is {record['score']!r}; expected a number") from error
        suggested = ((str(record["suggested"]), None), (str(record["given"]), None))
        found.append(
            Item(str(record["id"]), str(record.get("text", "")), record["given"], suggested, score, "suspected error")
        )
    return found


def read_rows(path: Path) -> dict[str, Example]:
    """Return classification rows by id."""
    return {example.id: example for example in read_examples(path, "classification", labelled=False)}


def _row(rows: Mapping[str, Example], identity: str, where: str) -> Example:
    if identity not in rows:
        raise UsageError(f"{where}: the id {identity!r} has no text; name the file of the rows with --data")
    return rows[identity]


def _header(path: Path) -> set[str]:
    if not path.is_file():
        raise FileMissing(f"{path}: there is no such file")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return {name.strip() for name in next(csv.reader(file), [])}


def _entropy(shares: Sequence[float]) -> float:
    return -sum(share * math.log(share) for share in shares if share > 0)


def _is_chance(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
