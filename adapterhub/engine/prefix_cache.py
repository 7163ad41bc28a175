"""Keys and values of prompts' beginnings, kept for requests that begin alike."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Tokens in one entry: short enough that most of a repeated instruction is found, long enough that copies are few.
CHUNK = 32

# Where positions lie in the states of a cache: [layers, 2, kv_heads, positions, head_dim].
_POSITIONS = 3


class Namespace(NamedTuple):
    """What must be equal for states to be equal, beside the tokens; `adapter` is a digest, "" for the bare base."""

    fingerprint: str
    identity: str
    adapter: str


@dataclass(eq=False)
class _Entry:
    id: int
    namespace: Namespace
    states: Tensor

    @property
    def bytes(self) -> int:
        return self.states.numel() * self.states.element_size()


class PrefixCache:
    """Copies of states by (namespace, tokens), in chunks of CHUNK tokens, each chained to the one before it.

    A chunk's key is its predecessor's id and its own tokens; ids are never used twice, so nothing is found by accident
    of a hash. Whoever touches a chunk then touches all before it, so that a predecessor is always more recent than its
    successors, and what is dropped when the byte budget is spent is always the end of a chain.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.hits = self.reused = 0
        self._ids = itertools.count()
        self._entries: OrderedDict[tuple[Namespace | int, tuple[int, ...]], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, namespace: Namespace, tokens: tuple[int, ...]) -> Tensor | None:
        """Return the states of the longest known beginning, at most all tokens but one, or None where none is known.

        [layers, 2, kv_heads, positions, head_dim]. One token is always left to run: its logits are wanted.
        """
        path = self._path(namespace, tokens[:-1])
        if not path:
            return None
        states = [self._entries[key].states for key in path]
        self._touch(path)
        self.hits += 1
        self.reused += len(path) * CHUNK
        return states[0] if len(states) == 1 else torch.cat(states, dim=_POSITIONS)

    def add(self, namespace: Namespace, tokens: tuple[int, ...], read: Callable[[int, int], Tensor]) -> None:
        """Keep the states of all whole chunks of `tokens`; `read(start, stop)` copies those that are not yet known."""
        if not self.budget:
            return
        path = self._path(namespace, tokens)
        for start in range(len(path) * CHUNK, len(tokens) - CHUNK + 1, CHUNK):
            before = self._entries[path[-1]].id if path else namespace
            key = (before, tokens[start : start + CHUNK])
            entry = _Entry(next(self._ids), namespace, read(start, start + CHUNK))
            self._entries[key] = entry
            self.bytes += entry.bytes
            path.append(key)
        self._touch(path)
        while self.bytes > self.budget:
            _, entry = self._entries.popitem(last=False)
            self.bytes -= entry.bytes

    def drop(self, adapter: str) -> None:
        """Forget what was computed with an adapter."""
        for key in [key for key, entry in self._entries.items() if entry.namespace.adapter == adapter]:
            self.bytes -= self._entries.pop(key).bytes

    def _path(self, namespace: Namespace, tokens: tuple[int, ...]) -> list[tuple[Namespace | int, tuple[int, ...]]]:
        path: list[tuple[Namespace | int, tuple[int, ...]]] = []
        before: Namespace | int = namespace
        for start in range(0, len(tokens) - CHUNK + 1, CHUNK):
            key = (before, tokens[start : start + CHUNK])
            entry = self._entries.get(key)
            if entry is None:
                break
            path.append(key)
            before = entry.id
        return path

    def _touch(self, path: list[tuple[Namespace | int, tuple[int, ...]]]) -> None:
        for key in reversed(path):
            self._entries.move_to_end(key)
