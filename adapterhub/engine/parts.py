"""How much of a step each owner gets, so that one's flood does not slow another's answers down."""

from __future__ import annotations

import math
from collections.abc import Mapping

# How many times as long a step may take as it would for the owner who wants least of it, for each other owner.
SLOWER = 1.5
# What an owner used counts half as much after about 140 steps.
_KEPT = 0.995
_FORGOTTEN = 0.01


class Parts:
    """What each of several owners may still run, in tokens, while they compete.

    A token takes as long whoever asked it, so what a step may cost is bounded for the sake of owners who used less of
    late: whoever used more adds half of the time that the step would take with the least of theirs alone, or as much
    as that one wants. Who wants no more is not bounded, nor is anybody while there is one owner only. What cannot be
    cut may exceed a part; the debt is paid off in later steps. What was not used is lost.
    """

    def __init__(self) -> None:
        self._left: dict[str, float] = {}
        self._used: dict[str, float] = {}

    def __len__(self) -> int:
        """Return how many owners are remembered."""
        return len(self._used)

    def begin(self, wanted: Mapping[str, int], fixed: float) -> None:
        """Share out a step of which each owner wants so many tokens, and that costs `fixed` tokens besides."""
        self._used = {owner: used * _KEPT for owner, used in self._used.items() if used > _FORGOTTEN}
        owed = {owner: left for owner, left in self._left.items() if left < 0}
        self._left = {}
        for owner, tokens in wanted.items():
            used = self._used.get(owner, 0.0)
            lighter = [each for other, each in wanted.items() if self._used.get(other, 0.0) < used]
            if lighter:
                part = max(min(lighter), (SLOWER - 1) * (fixed + min(lighter)))
                if tokens > part or owner in owed:
                    self._left[owner] = owed.get(owner, 0.0) + part

    @property
    def bound(self) -> bool:
        """True where somebody is bounded."""
        return bool(self._left)

    def binds(self, owner: str | None) -> bool:
        """Return whether an owner is bounded."""
        return owner in self._left

    def lift(self) -> None:
        """Pay all debts."""
        self._left.clear()

    def left(self, owner: str | None) -> float:
        """Return how many tokens an owner may still run; whoever has any may run a piece that cannot be cut."""
        return math.inf if owner is None else self._left.get(owner, math.inf)

    def spend(self, owner: str | None, tokens: int) -> None:
        """Count tokens that an owner runs."""
        if owner is None:
            return
        self._used[owner] = self._used.get(owner, 0.0) + tokens
        if owner in self._left:
            self._left[owner] -= tokens
