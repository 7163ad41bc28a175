"""What is known of an adapter before its weights are read: its task's rules, and how the engine gets the weights."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from adapterhub.data.task import TaskSpec
from adapterhub.engine.heads import REQUIRED, label_count
from adapterhub.engine.request import Adapter
from adapterhub.errors import BaseMismatch, CorruptAdapter
from adapterhub.lora.config import AdapterConfig, parse_config
from adapterhub.lora.files import WEIGHTS, build_weights, open_weights
from adapterhub.lora.weights import LoraWeights
from adapterhub.registry.bundle import TASK_FILE, digest_of, hash_file, hash_text, plain_file, read_text

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Specialist:
    """An adapter and the rules of its task, both covered by its digest."""

    adapter: Adapter
    spec: TaskSpec


class AdapterCache:
    """Keeps the rules of the `most` adapters used last; keys are digests, so nothing ever goes stale.

    Weights are not kept here: the engine's loader calls `Adapter.read` when it needs them. That checks the digest over
    the files and the very text the rules were made from, so rules and weights always belong together.
    """

    def __init__(self, base_name: str, base_fingerprint: str, dtype: torch.dtype, most: int = 4096) -> None:
        self._base_name, self._fingerprint = base_name, base_fingerprint
        self._dtype, self._most = dtype, most
        self._kept: OrderedDict[str, Specialist] = OrderedDict()
        # True once the engine may hold weights whose rules are not kept: it would not call `read` for their digest, so
        # nobody would find out that rules read from now on are not those of the digest. All files are hashed then.
        self._hash_first = False
        self._lock = threading.Lock()

    def get(self, name: str, folder: Path, digest: str, trained_on: str, fingerprint: str) -> Specialist:
        """Return what a published folder says of itself; reads its small files only.

        Raises BaseMismatch saying which base it wants, AdapterError for what is not plain LoRA, CorruptAdapter for
        files that are damaged, FileMissing and UnsafeAdapter.
        """
        self._check_base(name, trained_on, fingerprint)
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        found = self._open(name, folder, digest, at_once=self._hash_first)
        with self._lock:
            found = self._kept.setdefault(digest, found)  # whoever read them first: one digest has one set of rules
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
                self._hash_first = True
        return found

    def read(self, name: str, folder: Path) -> Specialist:
        """Return what any adapter folder says of itself, published or not; keeps nothing."""
        self._hash_first = True
        return self._open(name, folder, None, at_once=True)

    def _open(self, name: str, folder: Path, digest: str | None, *, at_once: bool) -> Specialist:
        task = read_text(folder / TASK_FILE)
        spec = TaskSpec.from_json(task)
        self._check_base(name, f"a base with fingerprint {spec.base_fingerprint}", spec.base_fingerprint)
        config = read_text(folder / CONFIG)
        _parse(config, folder)
        if at_once:
            weights = hash_file(plain_file(folder / WEIGHTS))
            found = digest_of({CONFIG: hash_text(config), WEIGHTS: weights, TASK_FILE: hash_text(task)})
            digest = digest or found
            _check_digest(name, folder, digest, found)
        assert digest is not None
        read = partial(self._weights, name, folder, digest, spec, hash_text(task))
        return Specialist(Adapter(digest, read, spec.pooling), spec)

    def _weights(self, name: str, folder: Path, digest: str, spec: TaskSpec, task: str) -> LoraWeights:
        """Return the weights of a folder, each file read once; `task` is the hash of the text `spec` was made from.

        Raises CorruptAdapter where files and digest disagree, and what reading an adapter raises.
        """
        try:
            config = read_text(folder / CONFIG)
            stored = open_weights(folder)
            found = digest_of({CONFIG: hash_text(config), WEIGHTS: stored.sha256(), TASK_FILE: task})
            _check_digest(name, folder, digest, found)
            weights = build_weights(_parse(config, folder), stored, self._dtype)
            _check_labels(name, spec, weights)
        except BaseException:
            # The rules may be what is wrong: once the files are restored, they are read again.
            with self._lock:
                self._kept.pop(digest, None)
                self._hash_first = True
            raise
        return weights

    def _check_base(self, name: str, trained_on: str, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            raise BaseMismatch(
                f"{name!r} was trained on {trained_on!r} (fingerprint {fingerprint}), and this is {self._base_name!r} "
                f"(fingerprint {self._fingerprint}); use that base, or train the task again on this one"
            )


def _parse(text: str, folder: Path) -> AdapterConfig:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptAdapter(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptAdapter(f"{folder / CONFIG} holds {type(record).__name__}, expected an object")
    return parse_config(record)


def _check_digest(name: str, folder: Path, digest: str, found: str) -> None:
    if found != digest:
        raise CorruptAdapter(
            f"the files of {name!r} in {folder} hash to {found}, its version says {digest}; "
            "`adapterhub registry verify` names them"
        )


def _check_labels(name: str, spec: TaskSpec, weights: LoraWeights) -> None:
    """Raise CorruptAdapter where labels and head do not belong together."""
    head, pooling = weights.head, spec.pooling
    if spec.kind == "generation":
        if head or pooling is not None:
            raise CorruptAdapter(f"{name!r} generates text but carries a classification head")
        return
    if pooling not in REQUIRED or REQUIRED[pooling][-1] not in head:
        raise CorruptAdapter(f"{name!r} classifies but has no head for pooling {pooling!r}; it has {sorted(head)}")
    count = label_count(head, pooling)
    if count != len(spec.labels):
        raise CorruptAdapter(f"{name!r} names {len(spec.labels)} labels, and its head tells {count} apart")
