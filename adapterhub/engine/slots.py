"""Places on the device that hold resident adapters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from adapterhub.lora.ops import NO_SLOT

from .request import Adapter
from .runner import HostAdapter
from .tally import Tally


class Slots:
    """A bounded set of resident adapters, counted while in use.

    Identity is the digest, so a newer version under an old name is another adapter and never meets its predecessor.

    Where a newcomer goes: into the lowest empty slot, if there is one; nothing is evicted while there is room. Else
    the idle, unpinned adapters are lined up by when they were last used, the half used more recently stays, and of the
    rest the one in the lowest slot leaves. The fast path computes over the window that covers all active slots, so low
    positions are worth more; half of the idle ones are kept from it, or a low slot would be everybody's victim.
    """

    def __init__(
        self,
        capacity: int,
        load: Callable[[int, HostAdapter], None],
        unload: Callable[[int], None],
        tally: Tally | None = None,
    ) -> None:
        self.capacity = capacity
        self._tally = tally or Tally()
        self._load, self._unload = load, unload
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._users = [0] * capacity
        self._pinned: set[str] = set()
        self.loads = self.evictions = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests, least recently used first."""
        return tuple(self._slots)

    @property
    def pinned(self) -> frozenset[str]:
        """Digests that are not evicted, resident or not."""
        return frozenset(self._pinned)

    def available(self, digest: str) -> bool:
        """Return whether `acquire` would find a slot now."""
        return digest in self._slots or len(self._slots) < self.capacity or bool(self._idle())

    def acquire(self, adapter: Adapter | None, host: HostAdapter | None) -> int | None:
        """Return the slot of the adapter, loading it if need be; None where every slot is in use or pinned.

        The bare base (None) needs no slot; one that is resident need not be in host memory. Errors of loading pass
        through and leave nothing behind.
        """
        if adapter is None:
            return NO_SLOT
        slot = self._slots.get(adapter.digest)
        if slot is None:
            slot = self._make_room()
            if slot is None:
                return None
            assert host is not None
            self._fill(slot, adapter.digest, host)
        self._slots.move_to_end(adapter.digest)
        self._users[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """Say that one row no longer uses the slot."""
        if slot != NO_SLOT:
            self._users[slot] -= 1

    def least_used(self) -> str | None:
        """Return the digest in use by the fewest rows of those that could be evicted once idle, or None."""
        in_use = [(self._users[s], s, d) for d, s in self._slots.items() if self._users[s] and d not in self._pinned]
        return min(in_use)[2] if in_use else None

    def drop(self, digest: str) -> None:
        """Empty the slot of an adapter that no row uses, and unpin it; nothing happens where it is not resident."""
        self._pinned.discard(digest)
        slot = self._slots.get(digest)
        if slot is not None and not self._users[slot]:
            del self._slots[digest]
            self._unload(slot)

    def pin(self, digest: str) -> None:
        """Keep an adapter in its slot, now or once it has one, until `unpin`."""
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        """Let an adapter be evicted by the usual rule."""
        self._pinned.discard(digest)

    def _fill(self, slot: int, digest: str, host: HostAdapter) -> None:
        try:
            self._load(slot, host)
        except BaseException:
            self._unload(slot)
            raise
        self._slots[digest] = slot
        self.loads += 1
        self._tally.of(digest).loads += 1

    def _make_room(self) -> int | None:
        if len(self._slots) < self.capacity:
            taken = set(self._slots.values())
            return next(slot for slot in range(self.capacity) if slot not in taken)
        idle = self._idle()
        if not idle:
            return None
        older = idle[: (len(idle) + 1) // 2]
        digest = min(older, key=self._slots.__getitem__)
        slot = self._slots.pop(digest)
        self._unload(slot)
        self.evictions += 1
        self._tally.of(digest).evictions += 1
        return slot

    def _idle(self) -> list[str]:
        """Return what may be evicted, least recently used first."""
        return [d for d, slot in self._slots.items() if not self._users[slot] and d not in self._pinned]
