"""What is known of an adapter before its weights are read: its task's rules, and how the engine gets the weights."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from adapterhub.data.task import FEATURE_POOLINGS, TaskSpec
from adapterhub.engine.heads import REQUIRED, label_count
from adapterhub.engine.request import Adapter
from adapterhub.errors import BaseMismatch, CorruptAdapter, FileMissing
from adapterhub.lora.config import AdapterConfig, parse_config
from adapterhub.lora.files import WEIGHTS, build_weights, open_weights
from adapterhub.lora.weights import LoraWeights
from adapterhub.registry.bundle import TASK_FILE, digest_of, hash_file, hash_text, plain_file, read_text

from .target import Target

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Specialist:
    """An adapter and the rules of its task, both covered by its digest; `rules` is the sha256 of their text."""

    adapter: Adapter
    spec: TaskSpec
    rules: str


class AdapterCache:
    """Keeps the rules of the `most` adapters used last; keys are digests and folders, so nothing ever goes stale.

    Weights are not kept here: the engine's loader calls `Adapter.read` when it needs them. That checks the digest over
    the files and the very text the rules were made from. The weights of a digest may as well be in the engine from
    another folder, or from before the files here changed; but then the hash of the rules that belong to the digest is
    known (a digest has one), and other rules are refused.
    """

    def __init__(
        self, base_name: str, base_fingerprint: str, dtype: torch.dtype, most: int = 4096, most_known: int = 65536
    ) -> None:
        self._base_name, self._fingerprint = base_name, base_fingerprint
        self._dtype, self._most, self._most_known = dtype, most, most_known
        self._kept: OrderedDict[tuple[str, Path], Specialist] = OrderedDict()
        # Digest to the hash of its rules, for all digests whose files were hashed: all that the engine may hold.
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, folder: Path, digest: str, trained_on: str, fingerprint: str) -> Specialist:
        """Return what a published folder says of itself; reads its small files only.

        Raises BaseMismatch saying which base it wants, AdapterError for what is not plain LoRA, CorruptAdapter for
        files that are damaged or missing, UnsafeAdapter.
        """
        self._check_base(name, trained_on, fingerprint)
        key = (digest, folder)
        with self._lock:
            # Full, it may have lost the rules of a digest that the engine holds: the files are hashed at once then.
            unsure = digest not in self._known and len(self._known) >= self._most_known
            found = None if unsure else self._kept.get(key)
            if found is not None and self._wrong_rules(name, digest, found.rules):
                del self._kept[key]
                found = None  # the files may have been restored
        if found is None:
            try:
                found = self._open(name, folder, digest, at_once=unsure)
            except FileMissing as error:
                raise _incomplete(name, error) from error
        with self._lock:
            if wrong := self._wrong_rules(name, digest, found.rules):
                raise wrong
            self._kept[key] = found
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found

    def read(self, name: str, folder: Path) -> Specialist:
        """Return what any adapter folder says of itself, published or not; keeps nothing but the hash of its rules."""
        return self._open(name, folder, None, at_once=True)

    def wrong_rules(self, target: Target) -> CorruptAdapter | None:
        """Return what is wrong where the target's rules are known not to be those of its digest."""
        assert target.digest is not None
        assert target.rules is not None
        with self._lock:
            return self._wrong_rules(target.name, target.digest, target.rules)

    def _wrong_rules(self, name: str, digest: str, rules: str) -> CorruptAdapter | None:
        known = self._known.get(digest, rules)
        if known == rules:
            return None
        return CorruptAdapter(
            f"the {TASK_FILE} of {name!r} hashes to {rules}, that of its version {digest} to {known}; "
            "`adapterhub registry verify` names what is damaged"
        )

    def _open(self, name: str, folder: Path, digest: str | None, *, at_once: bool) -> Specialist:
        task = read_text(folder / TASK_FILE)
        spec, rules = TaskSpec.from_json(task), hash_text(task)
        self._check_base(name, f"a base with fingerprint {spec.base_fingerprint}", spec.base_fingerprint)
        config = read_text(folder / CONFIG)
        _parse(config, folder)
        if at_once:
            weights = hash_file(plain_file(folder / WEIGHTS))
            found = digest_of({CONFIG: hash_text(config), WEIGHTS: weights, TASK_FILE: rules})
            digest = digest or found
            _check_digest(name, folder, digest, found)
            self._know(digest, rules)
        assert digest is not None
        read = partial(self._weights, name, folder, digest, spec, rules)
        head = None if spec.kind == "embedding" else spec.pooling
        return Specialist(Adapter(digest, read, head), spec, rules)

    def _weights(self, name: str, folder: Path, digest: str, spec: TaskSpec, rules: str) -> LoraWeights:
        """Return the weights of a folder, each file read once; `rules` is the hash of the text `spec` was made from.

        Raises CorruptAdapter where files and digest disagree or one is gone, and what reading an adapter raises.
        """
        try:
            config = read_text(folder / CONFIG)
            stored = open_weights(folder)
            found = digest_of({CONFIG: hash_text(config), WEIGHTS: stored.sha256(), TASK_FILE: rules})
            _check_digest(name, folder, digest, found)
            weights = build_weights(_parse(config, folder), stored, self._dtype)
            _check_labels(name, spec, weights)
        except BaseException as error:
            # The rules may be what is wrong: once the files are restored, they are read again.
            with self._lock:
                self._kept.pop((digest, folder), None)
            if isinstance(error, FileMissing):
                raise _incomplete(name, error) from error
            raise
        self._know(digest, rules)
        return weights

    def _know(self, digest: str, rules: str) -> None:
        with self._lock:
            self._known[digest] = rules
            self._known.move_to_end(digest)
            while len(self._known) > self._most_known:
                self._known.popitem(last=False)

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


def _incomplete(name: str, error: FileMissing) -> CorruptAdapter:
    """Return what a missing file means where there was one: the name is right, its version is damaged."""
    return CorruptAdapter(f"{name!r} is damaged: {error}")


def _check_digest(name: str, folder: Path, digest: str, found: str) -> None:
    if found != digest:
        raise CorruptAdapter(
            f"the files of {name!r} in {folder} hash to {found}, its version says {digest}; "
            "`adapterhub registry verify` names them"
        )


def _check_labels(name: str, spec: TaskSpec, weights: LoraWeights) -> None:
    """Raise CorruptAdapter where labels and head do not belong together."""
    head, pooling = weights.head, spec.pooling
    if spec.kind == "embedding":
        if head or spec.labels or pooling not in FEATURE_POOLINGS:
            raise CorruptAdapter(
                f"{name!r} makes vectors, so it has neither head nor labels, and one of the poolings "
                f"{', '.join(FEATURE_POOLINGS)}; it has {sorted(head)}, {list(spec.labels)} and {pooling!r}"
            )
        return
    if spec.kind == "generation":
        if head or pooling is not None:
            raise CorruptAdapter(f"{name!r} generates text but carries a classification head")
        return
    if pooling not in REQUIRED or REQUIRED[pooling][-1] not in head:
        raise CorruptAdapter(f"{name!r} classifies but has no head for pooling {pooling!r}; it has {sorted(head)}")
    count = label_count(head, pooling)
    if count != len(spec.labels):
        raise CorruptAdapter(f"{name!r} names {len(spec.labels)} labels, and its head tells {count} apart")
