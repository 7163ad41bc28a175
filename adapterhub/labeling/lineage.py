"""Lineage: which votes, voters and corrections a file of labelled rows came from, kept in a JSON file beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.errors import DataError
from adapterhub.registry.disk import replace_file

FORMAT = 1


def lineage_path(path: Path) -> Path:
    """Return where the lineage of a file of votes or of labelled rows lies: FILE.lineage.json."""
    return path.with_name(path.name + ".lineage.json")


def write_lineage(path: Path, record: Mapping[str, Any]) -> None:
    """Write the lineage of `path`, with the sha256 of its bytes as they are now, in one step."""
    whole = {**record, "format": FORMAT, "file": path.name, "sha256": file_hash(path)}
    replace_file(lineage_path(path), json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_lineage(path: Path) -> dict[str, Any] | None:
    """Return the lineage of `path`; None where there is none or the file was changed since, so it says nothing of it.

    Raises DataError for a lineage file that is no lineage.
    """
    beside = lineage_path(path)
    if not beside.is_file():
        return None
    try:
        record = json.loads(beside.read_text("utf-8"))
        if record["format"] != FORMAT:
            raise DataError(f"{beside}: the format is {record['format']!r}; upgrade this program, which reads {FORMAT}")
        unchanged = record["sha256"] == file_hash(path)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{beside}: not a lineage ({error!r}); make the file again, or delete this one") from error
    return dict(record) if unchanged else None


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
