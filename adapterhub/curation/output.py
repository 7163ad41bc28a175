"""What curation writes: the rows that stay, and beside them those that go, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adapterhub.errors import UsageError
from adapterhub.registry.disk import replacing

from .rows import Rows

Reasons = Mapping[int, Mapping[str, Any]]
"""Of each row that goes, what to write of it: `reason`, and what else there is to say."""


def dropped_path(path: Path) -> Path:
    """Return where the rows that did not stay are written: FILE.dropped.jsonl."""
    return path.with_name(path.name + ".dropped.jsonl")


def check_output(path: Path, *sources: Path | None, page: Path | None = None, drops: bool = False) -> None:
    """Raise UsageError where `path` is no .jsonl file to be, or a file that is read would be written over.

    Written are `path`, a `page` where one is named, and the rows that go where there are such (`drops`).
    """
    if path.suffix.lower() != ".jsonl":
        raise UsageError(f"--out is {str(path)!r}; rows are written as JSON lines, so name a .jsonl file")
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"--out is {str(path)!r}, but there is no folder {str(path.absolute().parent)!r}; make it first"
        )
    for option, written in (("--out", path), ("--out", dropped_path(path) if drops else None), ("--page", page)):
        if written is None or not written.exists():
            continue
        if any(source is not None and source.exists() and written.samefile(source) for source in sources):
            raise UsageError(
                f"{option} would write {str(written)!r}, which is also read; name another file, so that no row is lost"
            )


def write_split(path: Path, rows: Rows, reasons: Reasons, first: int = 0) -> tuple[int, int]:
    """Write the rows from `first` on to `path` in their order, those with a reason to FILE.dropped.jsonl.

    Both are whole or as they were before; rows are written as they were read. Returns how many were kept and dropped.
    """
    with replacing(dropped_path(path)) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        for row in sorted(reasons):
            file.write(_line(explained(rows.record(row), reasons[row])))
    kept = write_rows(path, rows, (row for row in range(first, len(rows)) if row not in reasons))
    return kept, len(reasons)


def write_rows(
    path: Path,
    rows: Rows,
    chosen: Iterable[int],
    change: Callable[[int, dict[str, Any]], Any] = lambda _, record: record,
) -> int:
    """Write the chosen rows, each as `change` makes it, in one step; return how many they were."""
    count = 0
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        for row in chosen:
            file.write(_line(change(row, rows.record(row))))
            count += 1
    return count


def explained(record: Mapping[str, Any], reason: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the reason in front; a field of its own of the same name goes by `own_` and that name."""
    own = {f"own_{name}" if name in reason else name: value for name, value in record.items()}
    return {**reason, **own}


def _line(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
