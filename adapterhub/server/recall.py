"""What was answered lately: a bounded store that joins an answer's id with its input, for feedback."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS said (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, place INTEGER, data TEXT)"
)
_INDEX = "CREATE UNIQUE INDEX IF NOT EXISTS by_id ON said (id, place)"


@dataclass(frozen=True)
class Said:
    """One answer: a choice, or an entry of a classification. `owner` is the id of the key that asked, or None."""

    task: str | None
    model: str
    digest: str | None
    kind: str
    input: Mapping[str, Any]
    predicted: Mapping[str, Any]
    owner: str | None = None


class Recall:
    """The last answers by id and index, in an SQLite file of about `budget` bytes of text; the oldest are forgotten.

    An answer is in the operating system's hands when `keep` returns, so killing the server forgets none.
    """

    def __init__(self, path: Path, budget: int) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Inputs of users: for the owner alone.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._file = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", _SCHEMA, _INDEX):
            self._file.execute(statement)
        self._bytes = int(self._file.execute("SELECT coalesce(sum(length(data)), 0) FROM said").fetchone()[0])

    def keep(self, identity: str, answers: Sequence[Said]) -> None:
        """Keep the answers of one request under its id, by their index."""
        rows = [(identity, place, json.dumps(asdict(each))) for place, each in enumerate(answers)]
        with self._lock:
            before = self._bytes
            self._file.execute("BEGIN IMMEDIATE")
            try:
                self._file.executemany("INSERT OR REPLACE INTO said (id, place, data) VALUES (?, ?, ?)", rows)
                self._bytes += sum(len(data) for _, _, data in rows)
                self._forget()
                self._file.execute("COMMIT")
            except BaseException:
                self._file.execute("ROLLBACK")
                self._bytes = before
                raise

    def find(self, identity: str, place: int) -> Said | None:
        """Return an answer, or None where it was forgotten or never given."""
        with self._lock:
            row = self._file.execute("SELECT data FROM said WHERE id = ? AND place = ?", (identity, place)).fetchone()
        return None if row is None else Said(**json.loads(row[0]))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _forget(self) -> None:
        while self._bytes > self._budget:
            oldest = self._file.execute("SELECT number, length(data) FROM said ORDER BY number LIMIT 100").fetchall()
            if not oldest:
                return
            for number, size in oldest:
                if self._bytes <= self._budget:
                    return
                self._file.execute("DELETE FROM said WHERE number = ?", (number,))
                self._bytes -= size
