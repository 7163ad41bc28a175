"""Adapters in host memory, read from folders and checked against their digest."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import torch

from adapterhub.data.task import TaskSpec
from adapterhub.engine.request import Adapter
from adapterhub.errors import BaseMismatch, CorruptAdapter
from adapterhub.lora.files import read_adapter
from adapterhub.registry.bundle import digest_folder


class AdapterCache:
    """Keeps the most recently used adapters up to a number of bytes; keys are digests, so nothing ever goes stale."""

    def __init__(self, base_name: str, base_fingerprint: str, dtype: torch.dtype, max_bytes: int = 1 << 30) -> None:
        self._base_name, self._fingerprint = base_name, base_fingerprint
        self._dtype, self._max_bytes = dtype, max_bytes
        self._kept: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, folder: Path, spec: TaskSpec, digest: str | None, trained_on: str | None) -> Adapter:
        """Return the adapter in `folder`; `digest` None takes the folder as it is.

        Raises BaseMismatch saying which base it wants, CorruptAdapter where files and digest disagree, and what reading
        an adapter raises.
        """
        if spec.base_fingerprint != self._fingerprint:
            wanted = f"base {trained_on!r} (fingerprint {spec.base_fingerprint})"
            raise BaseMismatch(
                f"{name!r} was trained on {wanted}, and this is {self._base_name!r} (fingerprint {self._fingerprint}); "
                "use that base, or train the task again on this one"
            )
        with self._lock:
            if digest is not None and digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        found = digest_folder(folder)
        if digest is not None and found != digest:
            raise CorruptAdapter(f"the files of {name!r} in {folder} hash to {found}, its version says {digest}")
        adapter = Adapter(found, read_adapter(folder, dtype=self._dtype), spec.pooling)
        self._keep(adapter)
        return adapter

    def _keep(self, adapter: Adapter) -> None:
        with self._lock:
            self._kept[adapter.digest] = adapter
            while len(self._kept) > 1 and sum(a.weights.bytes for a in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)
