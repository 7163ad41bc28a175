"""Adapters in host memory with their task's rules, read from folders and checked against their digest."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from adapterhub.data.task import TaskSpec
from adapterhub.engine.heads import REQUIRED, label_count
from adapterhub.engine.request import Adapter
from adapterhub.errors import BaseMismatch, CorruptAdapter
from adapterhub.lora.files import read_adapter
from adapterhub.registry.bundle import TASK_FILE, digest_folder, read_text


@dataclass(frozen=True)
class Specialist:
    """An adapter and the rules of its task, both covered by its digest."""

    adapter: Adapter
    spec: TaskSpec


class AdapterCache:
    """Keeps the most recently used adapters up to a number of bytes; keys are digests, so nothing ever goes stale."""

    def __init__(self, base_name: str, base_fingerprint: str, dtype: torch.dtype, max_bytes: int = 1 << 30) -> None:
        self._base_name, self._fingerprint = base_name, base_fingerprint
        self._dtype, self._max_bytes = dtype, max_bytes
        self._kept: OrderedDict[str, Specialist] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, folder: Path, digest: str, trained_on: str, fingerprint: str) -> Specialist:
        """Return what a published folder holds.

        Raises BaseMismatch saying which base it wants, CorruptAdapter where files and digest disagree, and what reading
        an adapter raises.
        """
        self._check_base(name, trained_on, fingerprint)
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        found = self.read(name, folder)
        if found.adapter.digest != digest:
            raise CorruptAdapter(
                f"the files of {name!r} in {folder} hash to {found.adapter.digest}, its version says {digest}; "
                "`adapterhub registry verify` names them"
            )
        with self._lock:
            self._kept[digest] = found
            while len(self._kept) > 1 and sum(k.adapter.weights.bytes for k in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)
        return found

    def read(self, name: str, folder: Path) -> Specialist:
        """Return what any adapter folder holds, published or not; keeps nothing."""
        digest = digest_folder(folder)
        spec = TaskSpec.from_json(read_text(folder / TASK_FILE))
        self._check_base(name, f"a base with fingerprint {spec.base_fingerprint}", spec.base_fingerprint)
        adapter = Adapter(digest, read_adapter(folder, dtype=self._dtype), spec.pooling)
        _check_labels(name, spec, adapter)
        return Specialist(adapter, spec)

    def _check_base(self, name: str, trained_on: str, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            raise BaseMismatch(
                f"{name!r} was trained on {trained_on!r} (fingerprint {fingerprint}), and this is {self._base_name!r} "
                f"(fingerprint {self._fingerprint}); use that base, or train the task again on this one"
            )


def _check_labels(name: str, spec: TaskSpec, adapter: Adapter) -> None:
    """Raise CorruptAdapter where labels and head do not belong together."""
    head, pooling = adapter.weights.head, spec.pooling
    if spec.kind == "generation":
        if head or pooling is not None:
            raise CorruptAdapter(f"{name!r} generates text but carries a classification head")
        return
    if pooling not in REQUIRED or REQUIRED[pooling][-1] not in head:
        raise CorruptAdapter(f"{name!r} classifies but has no head for pooling {pooling!r}; it has {sorted(head)}")
    count = label_count(head, pooling)
    if count != len(spec.labels):
        raise CorruptAdapter(f"{name!r} names {len(spec.labels)} labels, and its head tells {count} apart")
