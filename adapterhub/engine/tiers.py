"""An adapter's way from disk through host memory into a slot, and out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapterhub.errors import UsageError

from .loader import Load, Loader
from .request import Request
from .slots import Slots


@dataclass(eq=False)
class Waiter:
    """A queued request, and the load it waits for; None while its adapter needs none (the base, or one in a slot)."""

    request: Request
    load: Load | None = None


class Tiers:
    """Slots over host memory over whatever `Adapter.read` reads from; and who still uses which adapter.

    A slot holds a copy of its own, so adapters in host memory are held by queued requests only, until they have their
    slot; what sits in a slot counts as used in host memory too, so both tiers agree on what is recent.
    """

    def __init__(self, slots: Slots, loader: Loader, on_freed: Callable[[str], None] = lambda digest: None) -> None:
        self.slots, self.loader = slots, loader
        self._on_freed = on_freed
        self._users: dict[str, int] = {}
        self._leaving: set[str] = set()

    def join(self, request: Request) -> Waiter:
        """Count a request that comes in; its adapter is read from now on, unless it is resident."""
        waiter = Waiter(request)
        if request.adapter is not None:
            self._users[request.digest] = self._users.get(request.digest, 0) + 1
            self._seek(waiter)
        return waiter

    def ready(self, waiter: Waiter) -> bool:
        """Return whether a slot is all the request's adapter needs; raises the error its reading ended in."""
        if waiter.request.adapter is None or waiter.request.digest in self.slots:
            return True
        if waiter.load is None:  # it was resident when the request came, and was evicted since
            self._seek(waiter)
        assert waiter.load is not None
        if waiter.load.error is not None:
            raise waiter.load.error
        return waiter.load.host is not None

    def at_hand(self, waiter: Waiter) -> bool:
        """Return whether a request waits for no reading; neither begins one nor raises the error of one."""
        if waiter.request.adapter is None or waiter.request.digest in self.slots:
            return True
        return waiter.load is not None and waiter.load.host is not None

    def acquire(self, waiter: Waiter) -> int | None:
        """Return the slot for a ready request, or None where all are in use; raises what loading into it raises."""
        slot = self.slots.acquire(waiter.request.adapter, waiter.load.host if waiter.load else None)
        if slot is not None:
            self.let_go(waiter)
        return slot

    def let_go(self, waiter: Waiter) -> None:
        """Release what a request holds in host memory: it has its slot, or is over."""
        if waiter.load is not None:
            self.loader.release(waiter.load)
            waiter.load = None

    def leave(self, request: Request) -> None:
        """Count a request out, whatever became of it. The last user of a forgotten adapter frees it."""
        digest = request.digest
        if request.adapter is None:
            return
        self._users[digest] -= 1
        if not self._users[digest]:
            del self._users[digest]
            if digest in self._leaving:
                self._leaving.discard(digest)
                self._free(digest)

    def forget(self, digest: str) -> None:
        """Free an adapter in every tier: now, or once the last request using it is done. Unpins it too."""
        self.unpin(digest)
        if digest in self._users:
            self._leaving.add(digest)
        else:
            self._free(digest)

    def pin(self, digest: str) -> None:
        """Keep an adapter in host memory and in its slot once it is there; raises UsageError where no slot is left."""
        pinned = self.slots.pinned | {digest}
        if len(pinned) >= self.slots.capacity:
            raise UsageError(
                f"cannot pin {digest}: {len(pinned) - 1} of {self.slots.capacity} slots are pinned, and one must stay "
                "free for all others; unpin an adapter, or allow more resident ones"
            )
        self._leaving.discard(digest)
        self.slots.pin(digest)
        self.loader.pin(digest)

    def unpin(self, digest: str) -> None:
        """Let an adapter leave by the usual rules again."""
        self.slots.unpin(digest)
        self.loader.unpin(digest)

    def _seek(self, waiter: Waiter) -> None:
        request = waiter.request
        assert request.adapter is not None
        if request.digest in self.slots:
            self.loader.touch(request.digest)
        else:
            waiter.load = self.loader.hold(request.adapter, request.queue)

    def _free(self, digest: str) -> None:
        self.slots.drop(digest)
        self.loader.drop(digest)
        self._on_freed(digest)
