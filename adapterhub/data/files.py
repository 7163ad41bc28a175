"""Examples from a file, a Hugging Face dataset or a stream of lines, checked row by row as they are read."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub.errors import DataError, FileMissing
from adapterhub.recipe import Kind

from .example import Example
from .hf import PREFIX, read_dataset
from .prompt import input_field
from .readers import Record, parse_jsonl, parse_text, read_csv, read_jsonl, read_parquet, read_text
from .rows import RowRules, to_example

_READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
# Fields that rows of one kind have and those of the kinds behind it have not.
_TELLTALES: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("preference", frozenset({"chosen", "rejected"})),
    ("embedding", frozenset({"positive", "negative"})),
    ("multilabel", frozenset({"labels"})),
    ("generation", frozenset({"prompt", "messages", "completion"})),
)


def read_examples(
    path: str | Path, kind: Kind, *, labels: Collection[str] | None = None, labelled: bool = True
) -> Iterator[Example]:
    """Yield the examples of a .jsonl, .csv or .parquet file, or of `hf:NAME[:config][@split]`, as they are read.

    With `labels`, any other label is refused. `labelled=False` reads input to predict on: gold answers may be
    missing, and a .txt file gives one text a line. Raises FileMissing, DataError (naming file and line), UsageError
    where an extra is not installed.
    """
    return (example for _, example in read_rows(path, kind, labels=labels, labelled=labelled))


def read_rows(
    path: str | Path, kind: Kind, *, labels: Collection[str] | None = None, labelled: bool = True
) -> Iterator[tuple[Any, Example]]:
    """Yield what `read_examples` yields, each behind the row as the file has it. Raises as `read_examples` does."""
    rules = RowRules(kind, labels, labelled)
    return _rows(_open(path, rules), rules, _name(path))


def likely_kind(path: str | Path) -> Kind:
    """Return the kind of task that a file's first row was written for, by the fields it has. Raises as read_examples.

    A row of text alone may be for any kind that reads a text; it is taken for classification.
    """
    rules = RowRules("classification", labelled=False)
    record = next((value for _, value in _readable(_open(path, rules), _name(path))), None)
    given = {name for name, value in record.items() if value is not None} if isinstance(record, Mapping) else set()
    for kind, fields in _TELLTALES:
        if given & fields:
            return kind
    return "classification"


def read_stream(
    lines: Iterable[bytes | str],
    name: str,
    kind: Kind,
    *,
    labels: Collection[str] | None = None,
    labelled: bool = False,
) -> Iterator[Example]:
    """Yield the examples of `lines` (stdin, say), called `name` in messages.

    Lines are JSONL where the first one that is not blank begins with a brace; else, for input to predict on, each is
    a text. Raises DataError as read_examples does.
    """
    rules = RowRules(kind, labels, labelled)
    stream = iter(lines)
    head: list[bytes | str] = []
    for line in stream:
        head.append(line)
        if line.strip():
            break
    whole = itertools.chain(head, stream)
    plain = not labelled and bool(head) and not _begins_with_brace(head[-1])
    records = _as_fields(parse_text(whole, name), kind) if plain else parse_jsonl(whole, name)
    return (example for _, example in _rows(records, rules, name))


def _open(path: str | Path, rules: RowRules) -> Iterator[Record]:
    name = _name(path)
    if name.startswith(PREFIX):
        return read_dataset(name)
    file = Path(path)
    suffix = file.suffix.lower()
    try:
        there, is_folder = file.exists(), file.is_dir()
    except OSError as error:
        raise FileMissing(f"{name}: there can be no such file ({error.strerror})") from error
    if not there:
        raise FileMissing(f"{name}: there is no such file")
    if is_folder:
        raise DataError(f"{name}: this is a folder; name a file in it")
    if not os.access(file, os.R_OK):
        raise DataError(f"{name}: the file may not be read; check its permissions")
    if suffix == ".txt" and not rules.labelled:
        return _as_fields(read_text(file), rules.kind)
    if suffix not in _READERS:
        text = "" if rules.labelled else ", .txt (one text a line)"
        raise DataError(f"{name}: unknown kind of file {suffix!r}; expected .jsonl, .csv, .parquet{text} or hf:NAME")
    return _READERS[suffix](file)


def _name(path: str | Path) -> str:
    return path if isinstance(path, str) else path.as_posix()


def _as_fields(records: Iterable[Record], kind: Kind) -> Iterator[Record]:
    return ((where, {input_field(kind): text}) for where, text in records)


def _rows(records: Iterable[Record], rules: RowRules, name: str) -> Iterator[tuple[Any, Example]]:
    places: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    for where, record in _readable(records, name):
        example = to_example(record, rules, where)
        if example.id in places:
            if record.get("id") is not None:
                raise DataError(f"{where}: the id {example.id!r} is that of {places[example.id]}; ids are unique")
            example = replace(example, id=_next_free(example.id, repeats, places))
        places[example.id] = where
        yield record, example
    if not places:
        raise DataError(f"{name}: the file is empty; there are no rows in it")


def _readable(records: Iterable[Record], name: str) -> Iterator[Record]:
    try:
        yield from records
    except OSError as error:
        raise DataError(f"{name}: the file cannot be read ({error.strerror or error})") from error


def _next_free(identity: str, repeats: Counter[str], taken: Collection[str]) -> str:
    """Return a numbered id for a row that is equal to an earlier one: the second gets -2."""
    while True:
        repeats[identity] += 1
        numbered = f"{identity}-{repeats[identity] + 1}"
        if numbered not in taken:
            return numbered


def _begins_with_brace(line: bytes | str) -> bool:
    text = line if isinstance(line, str) else line.decode("utf-8", errors="replace")
    return text.lstrip("\ufeff \t").startswith("{")
