"""Adapters without a base: what slots and the loader need of one, and reads that a test controls."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from adapterhub.engine.loader import Loader
from adapterhub.engine.request import Adapter
from adapterhub.engine.runner import HostAdapter
from adapterhub.lora.weights import LoraWeights

PATIENCE = 60  # seconds until a wait that should have ended fails the test


def weights(size: int = 100) -> LoraWeights:
    """Return weights of `size` bytes."""
    return LoraWeights({}, {"head": torch.zeros(size, dtype=torch.uint8)})


def prepare(adapter: Adapter, read: LoraWeights) -> HostAdapter:
    """Do what a runner does, without a base."""
    return HostAdapter({}, read.head, adapter.pooling)


def host(size: int = 100) -> HostAdapter:
    return HostAdapter({}, weights(size).head, None)


class Disk:
    """Adapters that count their reads, may fail, and may be made to wait."""

    def __init__(self, size: int = 100) -> None:
        self.size = size
        self.reads: list[str] = []
        self.broken: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def adapter(self, digest: str, pooling: str | None = "last") -> Adapter:
        return Adapter(digest, self._reader(digest), pooling)

    def _reader(self, digest: str) -> Callable[[], LoraWeights]:
        def read() -> LoraWeights:
            self.reads.append(digest)
            self.entered.release()
            assert self.gate.wait(PATIENCE)
            if digest in self.broken:
                raise OSError(f"{digest} cannot be read")
            return weights(self.size)

        return read


def settle(loader: Loader) -> None:
    """Wait until nothing is being read any more; what must wait for memory may still be wanted."""
    while (thread := loader._thread) is not None:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    loader.clear()
