"""How much a server takes on at once, and of one key."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from adapterhub.errors import LimitReached, Overloaded, UsageError


@dataclass(frozen=True)
class ServerLimits:
    """Bytes of a body, requests answered or waiting at the same time, and seconds that one may take in all."""

    body_bytes: int = 4 * 1024 * 1024
    requests: int = 1024
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for name, value in (("body_bytes", self.body_bytes), ("requests", self.requests), ("seconds", self.seconds)):
            if not 0 < value < math.inf:
                raise UsageError(f"the limit {name} is {value}; it must be above 0 and finite")


class Places:
    """The requests that are answered or wait, and whose they are. Used by the event loop's thread alone.

    One key takes half of the places at most, so that its flood leaves room for others.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.most_of_one = max(1, most // 2)
        self._taken: Counter[str | None] = Counter()

    def take(self, key: str | None) -> None:
        """Take a place; raises Overloaded where none is left, LimitReached where the key has its part already."""
        if key is not None and self._taken[key] >= self.most_of_one:
            raise LimitReached(
                f"{self.most_of_one} requests of this key are being answered or wait, the most for one key; try later"
            )
        if self._taken.total() >= self.most:
            raise Overloaded(f"{self.most} requests are being answered or wait already; try again later")
        self._taken[key] += 1

    def free(self, key: str | None) -> None:
        """Give a place back."""
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]
