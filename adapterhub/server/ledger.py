"""What each key has used of its tokens: a small SQLite file that outlives the server."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

_BUSY_SECONDS = 30.0
_SCHEMA = "CREATE TABLE IF NOT EXISTS used (key TEXT, day TEXT, tokens INTEGER NOT NULL, PRIMARY KEY (key, day))"


def day_of(seconds: float) -> str:
    """Return the day, in UTC, of a time in seconds since the epoch: "2026-01-31"."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def seconds_to_next_day(seconds: float) -> float:
    """Return how long the day, in UTC, goes on."""
    now = datetime.fromtimestamp(seconds, UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return (midnight - now).total_seconds()


def ledger_of(keys: Path) -> Path:
    """Return where the use of a file of keys is counted: beside it."""
    return keys.with_name(keys.name + ".usage")


class Ledger:
    """Tokens used by key and day. Any number of threads and processes may share one file.

    Tokens are taken before they are computed, as many as an answer may need, and what was not needed is given back
    after. So the limit holds at every moment; what a killed server had taken and not given back counts as used. Every
    step is one transaction in the operating system's hands when the call returns: killing the server loses none, a
    power cut may lose the last moments.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.clock = clock
        self._lock = threading.Lock()
        # Made here, for the owner alone; SQLite gives its companion files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._file = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.execute(_SCHEMA)

    def take(self, key: str, day: str, tokens: int, limit: int | None) -> bool:
        """Count `tokens` as used, unless that would be more than `limit` on that day; return whether it was done."""
        with self._lock, closing(self._file.cursor()) as cursor:
            cursor.execute(
                "INSERT INTO used SELECT ?1, ?2, ?3 WHERE ?4 IS NULL OR ?3 <= ?4 "
                "ON CONFLICT (key, day) DO UPDATE SET tokens = tokens + ?3 WHERE ?4 IS NULL OR tokens + ?3 <= ?4",
                (key, day, tokens, limit),
            )
            return cursor.rowcount > 0

    def give_back(self, key: str, day: str, tokens: int) -> None:
        """Count `tokens` that were taken as not used."""
        with self._lock:
            self._file.execute("UPDATE used SET tokens = tokens - ? WHERE key = ? AND day = ?", (tokens, key, day))

    def used(self, key: str, day: str) -> int:
        """Return how many tokens a key has used on a day."""
        with self._lock:
            row = self._file.execute("SELECT tokens FROM used WHERE key = ? AND day = ?", (key, day)).fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


class Meter:
    """One request's tokens: what it took of its key's quota, and what it gave back in the end.

    `take` may be called from any thread, several times; `settle` is called once the answer is known, and again by
    whoever is last, without effect.
    """

    def __init__(self, ledger: Ledger, key: str, limit: int | None) -> None:
        self._ledger, self._key, self._limit = ledger, key, limit
        self._lock = threading.Lock()
        self._day = day_of(ledger.clock())
        self._taken = 0
        self._settled = False

    @property
    def seconds_left(self) -> float:
        """How long the day of the quota goes on."""
        return seconds_to_next_day(self._ledger.clock())

    def take(self, tokens: int) -> bool:
        """Take tokens before they are computed; return whether the quota had room for them."""
        with self._lock:
            if self._settled or not self._ledger.take(self._key, self._day, tokens, self._limit):
                return False
            self._taken += tokens
            return True

    def settle(self, used: int) -> None:
        """Give back what was taken beyond `used`."""
        with self._lock:
            if self._settled:
                return
            self._settled = True
            if self._taken > used:
                self._ledger.give_back(self._key, self._day, self._taken - used)
