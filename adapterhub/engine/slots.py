"""Places that hold resident adapters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from adapterhub.lora.ops import NO_SLOT

from .request import Adapter


class Slots:
    """A bounded set of resident adapters, counted while in use, the least recently used leaving first.

    Identity is the digest, so a newer version under an old name is another adapter and never meets its predecessor.
    """

    def __init__(self, capacity: int, load: Callable[[int, Adapter], None], unload: Callable[[int], None]) -> None:
        self.capacity = capacity
        self._load, self._unload = load, unload
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._users: dict[int, int] = {}
        self.loads = self.evictions = 0

    def acquire(self, adapter: Adapter | None) -> int | None:
        """Return the slot of the adapter, loading it if need be; None where every slot is in use.

        The bare base (None) needs no slot. Errors of loading pass through and leave nothing behind.
        """
        if adapter is None:
            return NO_SLOT
        if adapter.digest in self._slots:
            self._slots.move_to_end(adapter.digest)
            slot = self._slots[adapter.digest]
        else:
            free = self._free_slot()
            if free is None:
                return None
            slot = free
            try:
                self._load(slot, adapter)
            except BaseException:
                self._unload(slot)
                raise
            self._slots[adapter.digest] = slot
            self.loads += 1
        self._users[slot] = self._users.get(slot, 0) + 1
        return slot

    def release(self, slot: int) -> None:
        """Say that one row no longer uses the slot."""
        if slot != NO_SLOT:
            self._users[slot] -= 1

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests, least recently used first."""
        return tuple(self._slots)

    def _free_slot(self) -> int | None:
        if len(self._slots) < self.capacity:
            return next(slot for slot in range(self.capacity) if slot not in self._slots.values())
        for digest, slot in self._slots.items():
            if not self._users.get(slot):
                del self._slots[digest]
                self._unload(slot)
                self.evictions += 1
                return slot
        return None
