"""Who is served next, so that one share's flood does not starve the others."""

from __future__ import annotations

from collections.abc import Iterable

# What a token costs: one that is read, one that is said (Sheng et al. 2024, section 3.1).
INPUT_COST = 1.0
OUTPUT_COST = 2.0


class VirtualCounters:
    """A virtual token counter a share (Sheng et al. 2024, "Fairness in Serving Large Language Models").

    Every token adds its cost over the share's weight; the share with the least counter goes first. One that comes, or
    comes back, starts at the least counter of those that wait or run: it is owed nothing for having been away. A share
    with nothing left is forgotten, so the table holds no more names than there are requests.
    """

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._requests: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counters)

    def __getitem__(self, share: str) -> float:
        """Return the counter of a share that waits or runs."""
        return self._counters[share]

    def join(self, share: str) -> None:
        """Say that one more request of the share waits."""
        if share not in self._counters:
            self._counters[share] = min(self._counters.values(), default=0.0)
        self._requests[share] = self._requests.get(share, 0) + 1

    def leave(self, share: str) -> None:
        """Say that one request of the share is over, whatever became of it."""
        self._requests[share] -= 1
        if not self._requests[share]:
            del self._requests[share], self._counters[share]

    def lift(self, share: str, others: Iterable[str]) -> None:
        """Let a share that could not be served keep up with the least served of `others`: waiting earns nothing."""
        self._counters[share] = max(self._counters[share], min((self._counters[o] for o in others), default=0.0))

    def charge(self, share: str, cost: float, weight: float) -> None:
        """Add what was spent on a request of the share."""
        self._counters[share] += cost / weight
