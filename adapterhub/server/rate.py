"""How many requests a minute a key sends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MINUTE = 60.0


class RateLimiter:
    """The times of each key's last requests: in no minute, wherever it begins, are more let in than allowed.

    Used by the event loop's thread alone. A restart forgets the last minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def take(self, key: str, limit: int) -> float:
        """Count a request of `key`, of which `limit` a minute are allowed, and return 0.

        Where that were too many, count nothing and return after how many seconds it will not be.
        """
        now = self._clock()
        times = self._times.setdefault(key, deque())
        while times and now - times[0] >= MINUTE:
            times.popleft()
        if len(times) < limit:
            times.append(now)
            return 0.0
        # The limit may have been lowered since: then more than one has to grow old.
        return MINUTE - (now - times[len(times) - limit])
