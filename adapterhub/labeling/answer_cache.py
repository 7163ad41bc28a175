"""What models answered, kept by what they were asked, so that nothing is asked twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

_WAIT_SECONDS = 60.0
_MOST_KEYS = 500  # in one question to the database, below the least limit that SQLite was ever built with


class AnswerCache:
    """JSON values by key, in one SQLite file. Several processes may use it; a killed one loses what it had not put.

    It can always be made again: a file that is no database is begun anew. Raises OSError where nothing can be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._create()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"{path}: {error}") from error
            path.unlink()
            self._create()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return what is known of `keys`."""
        wanted, found = list(dict.fromkeys(keys)), {}
        with closing(self._open()) as database:
            for start in range(0, len(wanted), _MOST_KEYS):
                part = wanted[start : start + _MOST_KEYS]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", part)  # noqa: S608
                found.update({key: json.loads(value) for key, value in rows})
        return found

    def put(self, answers: Mapping[str, Any]) -> None:
        """Keep answers, all of them or none; they are on the disk when this returns."""
        rows = [(key, json.dumps(value)) for key, value in answers.items()]
        with closing(self._open()) as database, database:
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def _create(self) -> None:
        with closing(self._open()) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_WAIT_SECONDS)
