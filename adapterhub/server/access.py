"""Who may come in: keys from the command line and from a file that may change while the server runs."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterHubError, Forbidden, LimitReached, QuotaSpent

from .keys import Key, KeyFile, hash_key
from .ledger import Ledger, Meter, ledger_of
from .log import LOG
from .rate import RateLimiter


@dataclass(frozen=True)
class Visitor:
    """Who sent a request: a key, and the meter of this request's tokens where they are counted."""

    key: Key
    meter: Meter | None = None

    @property
    def name(self) -> str:
        """The key's name."""
        return self.key.name

    def check_task(self, *names: str) -> None:
        """Raise Forbidden where the key does not allow what goes by one of these names, be it there or not."""
        if not self.key.may_ask(*names):
            raise Forbidden(
                f"the key {self.key.name!r} may not ask {names[0][:80]!r}; it may ask {', '.join(self.key.tasks or ())}"
            )

    def check_admin(self) -> None:
        """Raise Forbidden where the key has no admin right."""
        if not self.key.admin:
            raise Forbidden(f"the key {self.key.name!r} has no admin right, which this route needs")

    def admit(self, tokens: int) -> None:
        """Take tokens of the key's quota; raises QuotaSpent where it has not so many left today."""
        if self.meter is None or self.meter.take(tokens):
            return
        raise QuotaSpent(
            f"the key {self.key.name!r} may use {self.key.tokens_per_day} tokens a day (UTC), and has fewer left "
            f"than the {tokens} that this may need; ask for a shorter answer, or again tomorrow",
            retry_after=self.meter.seconds_left,
        )

    def settle(self, used: int) -> None:
        """Give back what was taken beyond `used`; only the first call counts."""
        if self.meter is not None:
            self.meter.settle(used)


class Access:
    """The keys a server knows, and what each has used. All but `Visitor.admit` runs in the event loop's thread.

    The file is read again when it changes. One that is gone or broken then changes nothing but a line in the log: a
    slip of the pen must neither let strangers in nor lock everybody out.
    """

    def __init__(self, path: Path | None = None, api_key: str | None = None, ledger: Ledger | None = None) -> None:
        self._file = None if path is None else KeyFile(path)
        self._fixed: tuple[Key, ...] = ()
        if api_key is not None:
            # As it came from the environment, where bytes need not be UTF-8.
            hashed = hash_key(api_key.encode("utf-8", "surrogateescape"))
            self._fixed = (Key("api-key", "api-key", hashed, "", admin=True),)
        self._rate = RateLimiter()
        self._seen = self._stamp()
        self._keys: tuple[Key, ...] = () if self._file is None else self._file.read()
        if path is not None and ledger is None:
            ledger = Ledger(ledger_of(path))
        self.ledger = ledger

    def find(self, authorization: str) -> Key | None:
        """Return the key that an `Authorization` header holds, or None."""
        scheme, _, text = authorization.partition(" ")
        # Header text is Latin-1 for whatever bytes came.
        hashed = hash_key(text.strip().encode("latin-1"))
        found = None
        for key in (*self._fixed, *self._current()):
            # Every key is compared, however early one fits.
            if hmac.compare_digest(key.sha256, hashed) and key.revoked_at is None:
                found = key
        return found if scheme.lower() == "bearer" else None

    def visitor(self, key: Key) -> Visitor:
        """Return the visitor that a key makes of a request."""
        metered = self.ledger is not None and key not in self._fixed
        return Visitor(key, Meter(self.ledger, key.id, key.tokens_per_day) if metered and self.ledger else None)

    def count(self, key: Key) -> None:
        """Count a request against the key's rate; raises LimitReached."""
        if key.requests_per_minute is None:
            return
        seconds = self._rate.take(key.id, key.requests_per_minute)
        if seconds > 0:
            raise LimitReached(
                f"the key {key.name!r} may send {key.requests_per_minute} requests a minute; try again later",
                retry_after=seconds,
            )

    def close(self) -> None:
        """Close the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    def _stamp(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _current(self) -> tuple[Key, ...]:
        stamp = self._stamp()
        if self._file is None or stamp == self._seen:
            return self._keys
        self._seen = stamp
        try:
            self._keys = self._file.read()
        except (AdapterHubError, OSError) as error:
            LOG.error("the keys stay as they were: %s", error)
        else:
            LOG.info("read %d keys from %s", len(self._keys), self._file.path)
        return self._keys
