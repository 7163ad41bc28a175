"""What the engine did for each adapter."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

# Digests counted apart; the rest is counted together, so that the table has an end.
MOST_ADAPTERS = 256
OTHERS = "others"


@dataclass
class AdapterCounts:
    """Totals of one adapter: requests that began to run and the seconds they had waited, slots, prompts' beginnings."""

    started: int = 0
    queue_seconds: float = 0.0
    loads: int = 0
    evictions: int = 0
    prefix_hits: int = 0
    prefix_tokens: int = 0

    def __add__(self, other: AdapterCounts) -> AdapterCounts:
        """Return the totals of both."""
        return AdapterCounts(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Residency:
    """Where an adapter is: in a slot (ready to run), in host memory, and whether it is kept."""

    slot: bool = False
    memory: bool = False
    pinned: bool = False

    @property
    def place(self) -> str:
        """The highest place it has: "slot", "memory" or "disk"."""
        return "slot" if self.slot else "memory" if self.memory else "disk"


class Tally:
    """Counts by digest ("" is the bare base), written by the engine's thread and read by any."""

    def __init__(self, most: int = MOST_ADAPTERS) -> None:
        self._most = most
        self._counts: dict[str, AdapterCounts] = {}

    def of(self, digest: str) -> AdapterCounts:
        """Return the counts to add to; those of `OTHERS` once too many adapters are counted apart."""
        found = self._counts.get(digest)
        if found is None:
            if len(self._counts) >= self._most:
                digest = OTHERS
            found = self._counts.setdefault(digest, AdapterCounts())
        return found

    def counts(self) -> dict[str, AdapterCounts]:
        """Return a copy of all counts."""
        # dict() copies in one step of the interpreter, whatever the engine's thread adds meanwhile.
        return {digest: replace(each) for digest, each in dict(self._counts).items()}
