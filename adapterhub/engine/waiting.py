"""Requests that wait, in lanes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum

from .request import Classify, Request
from .tiers import Waiter


class Kind(Enum):
    """What a request needs of the cache: a place always, a place if it must be run in chunks, or never one."""

    GENERATE = "generate"
    LONG = "long"
    SHORT = "short"


class Lane:
    """Waiters of one share, adapter and kind: what one of them waits for, all behind it wait for too."""

    def __init__(self, digest: str, kind: Kind) -> None:
        self.digest, self.kind = digest, kind
        self.waiters: deque[Waiter] = deque()

    @property
    def first(self) -> int:
        """The number of the request at its head."""
        return self.waiters[0].request.id


class Waiting:
    """All lanes by share. A lane that runs empty is forgotten."""

    def __init__(self) -> None:
        self._lanes: dict[str, dict[tuple[str, Kind], Lane]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiter]:
        for lanes in self._lanes.values():
            for lane in lanes.values():
                yield from lane.waiters

    @property
    def shares(self) -> tuple[str, ...]:
        """Shares in which somebody waits."""
        return tuple(self._lanes)

    def lanes(self, share: str, left_out: Kind | None = None) -> list[Lane]:
        """Return the lanes of a share but those of one kind, the one whose head came first in front."""
        lanes = [lane for lane in self._lanes.get(share, {}).values() if lane.kind is not left_out]
        return sorted(lanes, key=lambda lane: lane.first)

    def push(self, waiter: Waiter, kind: Kind) -> None:
        """Put a waiter at the end of its lane."""
        request = waiter.request
        lanes = self._lanes.setdefault(request.queue, {})
        lanes.setdefault((request.digest, kind), Lane(request.digest, kind)).waiters.append(waiter)
        self._count += 1

    def pop(self, share: str, lane: Lane) -> Waiter:
        """Take the head of a lane."""
        waiter = lane.waiters.popleft()
        self._count -= 1
        self._tidy(share, lane)
        return waiter

    def drop_cancelled(self) -> list[Waiter]:
        """Take out everybody whose asker has gone away."""
        gone = [waiter for waiter in self if waiter.request.cancelled]
        for share in {waiter.request.queue for waiter in gone}:
            for lane in self.lanes(share):
                lane.waiters = deque(waiter for waiter in lane.waiters if not waiter.request.cancelled)
                self._tidy(share, lane)
        self._count -= len(gone)
        return gone

    def clear(self) -> list[Waiter]:
        """Take out everybody."""
        everybody = list(self)
        self._lanes.clear()
        self._count = 0
        return everybody

    def _tidy(self, share: str, lane: Lane) -> None:
        if lane.waiters:
            return
        del self._lanes[share][lane.digest, lane.kind]
        if not self._lanes[share]:
            del self._lanes[share]


def kind_of(request: Request, *, causal: bool, chunk_tokens: int) -> Kind:
    """Return the lane's kind. Chunks exist where the base is causal and the prompt longer than one of them.

    A head that looks at the first token needs the prompt whole: the last chunk has no first token.
    """
    if request.keeps_cache:
        return Kind.GENERATE
    whole = isinstance(request.ask, Classify) and request.adapter is not None and request.adapter.pooling != "last"
    return Kind.LONG if causal and not whole and len(request.tokens) > chunk_tokens else Kind.SHORT
