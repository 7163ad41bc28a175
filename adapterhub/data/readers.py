"""Files as streams of raw records: JSONL, CSV, Parquet and plain text, each record with its place for messages."""

from __future__ import annotations

import csv
import datetime
import decimal
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from adapterhub.errors import DataError, UsageError

Record = tuple[str, Any]  # (where, what the row held)
_BOM = b"\xef\xbb\xbf"
_CSV_JSON = ("probs", "messages")


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield the JSON value of each line that is not blank. Raises DataError with the line."""
    with path.open("rb") as file:
        yield from parse_jsonl(file, str(path))


def parse_jsonl(lines: Iterable[bytes | str], name: str) -> Iterator[Record]:
    """Yield the JSON value of each line of `lines` that is not blank; `name` stands in messages."""
    for where, line in decode_lines(lines, name):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({_json_reason(error)}); each line is one JSON object") from error
        if "\\ud" in line.lower():  # an escape may have made half a character, which no tokenizer takes
            _check_whole_characters(value, where)
        yield where, value


def read_text(path: Path) -> Iterator[Record]:
    """Yield one text a line, without its line end."""
    with path.open("rb") as file:
        yield from parse_text(file, str(path))


def parse_text(lines: Iterable[bytes | str], name: str) -> Iterator[Record]:
    """Yield one text a line, without its line end; blank lines are left out."""
    for where, line in decode_lines(lines, name):
        if line.strip():
            yield where, line.rstrip("\r\n")


def read_csv(path: Path) -> Iterator[Record]:
    """Yield each row of a CSV file with a header line; `where` is the line on which the row begins.

    All cells are text. An empty cell of `id`, `label`, `weight`, `probs`, `source`, `messages` or `negative` means
    absent; `labels` are separated by | or a JSON list. Raises DataError for a ragged row or a bad header.
    """
    with path.open("rb") as file:
        lines = (line for _, line in decode_lines(file, str(path)))
        reader = csv.reader(lines, strict=True)
        start = 1
        header: list[str] | None = None
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}:{start}: not valid CSV ({error})") from error
            where, start = f"{path}:{start}", reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = _csv_header(row, where)
            else:
                yield where, _csv_record(header, row, where)


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield each row of a Parquet file, `where` being its number from 1. Needs the `parquet` extra (UsageError)."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UsageError(f"{path}: reading Parquet needs pyarrow: pip install 'adapterhub[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            for number, row in enumerate(rows, start=1):
                where = f"{path}:{number}"
                yield where, {name: plain(value, name, where) for name, value in row.items()}
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read ({(str(error).splitlines() or ['damaged'])[0]})"
        ) from error


def decode_lines(lines: Iterable[bytes | str], name: str) -> Iterator[tuple[str, str]]:
    """Yield (where, line) as text, without a byte order mark. Raises DataError where a line is not UTF-8."""
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        if isinstance(line, str):
            yield where, line.removeprefix("\ufeff") if number == 1 else line
            continue
        try:
            yield where, (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            bad = f"byte 0x{error.object[error.start]:02x} in column {error.start + 1}"
            raise DataError(f"{where}: not UTF-8 ({bad}); save the file as UTF-8") from error


def plain(value: Any, name: str, where: str) -> Any:
    """Return a table's cell as JSON has it: dates as ISO text, decimals as text, NaN as null. Raises DataError."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, name, where) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, name, where) for key, item in value.items()}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise DataError(f"{where}: column {name!r} holds {type(value).__name__}, which no prompt can use; drop the column")


def _csv_header(row: Sequence[str], where: str) -> list[str]:
    header = [name.strip() for name in row]
    for index, name in enumerate(header):
        if not name:
            raise DataError(f"{where}: column {index + 1} of the CSV header has no name")
        if name in header[:index]:
            raise DataError(f"{where}: the CSV header names column {name!r} twice")
    return header


def _csv_record(header: Sequence[str], row: Sequence[str], where: str) -> dict[str, Any]:
    if len(row) != len(header):
        raise DataError(
            f"{where}: the row has {len(row)} cells but the header has {len(header)}; "
            "put quotes around text that holds a comma"
        )
    return {name: _csv_cell(name, cell, where) for name, cell in zip(header, row, strict=True)}


def _csv_cell(name: str, cell: str, where: str) -> Any:
    if name == "labels":
        return _csv_labels(cell, where)
    if not cell and name in ("id", "label", "weight", "source", "negative", *_CSV_JSON):
        return None
    if name == "weight":
        try:
            return float(cell)
        except ValueError:
            return cell  # refused, and quoted, where the row is checked
    return _csv_json(name, cell, where) if name in _CSV_JSON else cell


def _csv_labels(cell: str, where: str) -> Any:
    if cell.lstrip().startswith("["):
        return _csv_json("labels", cell, where)
    return [label.strip() for label in cell.split("|")] if cell.strip() else []


def _csv_json(name: str, cell: str, where: str) -> Any:
    try:
        return json.loads(cell, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: column {name!r} is not valid JSON ({_json_reason(error)})") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _json_reason(error: Exception) -> str:
    return f"{error.msg} in column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _check_whole_characters(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{where}: {half} is half of a character (a lone surrogate); write the whole pair") from error
