"""Features of texts kept on disk, so that a text is read by a base once, however often rows are judged by it.

A folder holds what one base says under one pooling and dtype: `features`, float32 vector after vector, and `keys`, the
hash of each text in the same order. Both only grow. A vector counts once its key is there, and the key is written after
the vector has reached the disk: whatever stops the program, what was counted is whole.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from adapterhub.errors import BaseError
from adapterhub.folders import cache_root

from .cache import explained, locked
from .features import Embedder, check_pooling, default_pooling
from .load import load_hidden_size
from .record import Base

# What rows are judged by unless a base is named: chosen in benchmarks/RESULTS.md ("Which features").
DEFAULT_BASE = "all-minilm-l6-v2"
# Texts of one commit, which is what an interruption can lose.
CHUNK = 512
# Where a result is larger than this it lies in a file without a name, not in memory.
_IN_MEMORY = 64 << 20
_KEY = 16

Report = Callable[[int], None]
"""Hears how many texts are done."""


def stored_features(
    base: Base,
    texts: Iterable[str],
    pooling: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Report | None = None,
    cache: Path | None = None,
) -> np.ndarray:
    """Return float32 [texts, dim], memory-mapped where it is large; only texts that are not known are computed.

    `pooling` None is the base's default; `dtype` is that of the computation. A text longer than the base's context is
    read up to there. Texts stream: memory does not grow with them beyond 24 bytes each. Raises InvalidRequest for a
    text without tokens, AdapterHubError where the disk is full; what was kept before stays.
    """
    pooling = default_pooling(base) if pooling is None else pooling
    check_pooling(pooling)
    store = FeatureStore.open(base, pooling, dtype, cache_root() if cache is None else cache)
    with explained(base.name, store.folder), tempfile.TemporaryFile(dir=store.folder) as file:
        done = 0
        source = iter(texts)
        while chunk := list(islice(source, CHUNK)):
            file.write(store.take(chunk, done).tobytes())
            done += len(chunk)
            if progress is not None:
                progress(done)
        file.flush()
        return _mapped(file, done, store.dim)


@dataclass
class FeatureStore:
    """What is kept for one base, pooling and dtype. Several processes may use it at once."""

    folder: Path
    base: Base
    pooling: str
    dtype: torch.dtype
    dim: int

    def __post_init__(self) -> None:
        self._embedder: Embedder | None = None
        self._count = 0
        self._heads, self._tails = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._order = np.empty(0, np.int64)
        self._vectors = np.empty((0, self.dim), np.float32)

    @classmethod
    def open(cls, base: Base, pooling: str, dtype: torch.dtype, cache: Path) -> FeatureStore:
        """Open the store of a base, making it where there is none."""
        name = f"{base.fingerprint.removeprefix('sha256:')[:16]}-{pooling}-{str(dtype).removeprefix('torch.')}"
        folder = cache / "features" / name
        with explained(base.name, folder):
            folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, base, pooling, dtype, load_hidden_size(base))
        store._look()
        return store

    def __len__(self) -> int:
        """How many texts are known."""
        return self._count

    def take(self, texts: Sequence[str], first: int = 0) -> np.ndarray:
        """Return float32 [texts, dim]; what is missing is computed and kept. `first` numbers them in messages."""
        keys = np.frombuffer(b"".join(map(_key, texts)), np.uint64).reshape(-1, 2)
        places = self._find(keys)
        if (missing := np.flatnonzero(places < 0)).size:
            once = {texts[row]: row for row in reversed(missing.tolist())}
            rows = sorted(once.values())
            self._keep(self._compute([texts[row] for row in rows], [first + row for row in rows]), keys[rows])
            places = self._find(keys)
        found: np.ndarray = self._vectors[places]
        return found

    def _compute(self, texts: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
        if self._embedder is None:
            self._embedder = Embedder(self.base, self.pooling, self.dtype, cut=True)
        return self._embedder(texts, numbers=numbers).numpy()

    def _keep(self, vectors: np.ndarray, keys: np.ndarray) -> None:
        """Append vectors and then their keys, behind what any process has written by now."""
        with locked(self.folder, "write"):
            self._look()
            with _writable(self.folder / "features") as file:
                file.seek(self._count * self.dim * 4)
                file.write(np.ascontiguousarray(vectors, np.float32).tobytes())
                file.flush()
                os.fsync(file.fileno())
            with _writable(self.folder / "keys") as file:
                file.seek(self._count * _KEY)
                file.write(keys.tobytes())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        self._look()

    def _look(self) -> None:
        """Take in what is there: whole keys with whole vectors."""
        keys, vectors = self.folder / "keys", self.folder / "features"
        sizes = [file.stat().st_size if file.exists() else 0 for file in (keys, vectors)]
        count = min(sizes[0] // _KEY, sizes[1] // (4 * self.dim))
        if count == self._count:
            return
        pairs = np.fromfile(keys, np.uint64, 2 * count).reshape(count, 2)
        if len(pairs) < count:  # pragma: no cover - somebody cleared the folder between the two looks
            raise BaseError(f"{keys} became shorter while it was read; try again")
        self._order = np.argsort(pairs[:, 0], kind="stable")
        self._heads, self._tails = pairs[self._order, 0], pairs[self._order, 1]
        self._vectors = np.memmap(vectors, np.float32, "r", shape=(count, self.dim))
        self._count = count

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Return where each key's vector is, -1 where it is not known."""
        left = np.searchsorted(self._heads, keys[:, 0], "left")
        right = np.searchsorted(self._heads, keys[:, 0], "right")
        places = np.full(len(keys), -1)
        for row in np.flatnonzero(right > left):
            same = np.flatnonzero(self._tails[left[row] : right[row]] == keys[row, 1])
            if same.size:
                places[row] = self._order[left[row] + same[0]]
        return places


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY).digest()


def _writable(path: Path) -> BinaryIO:
    path.touch(exist_ok=True)
    return path.open("r+b")


def _mapped(file: BinaryIO, rows: int, dim: int) -> np.ndarray:
    """Return what was written to a file: read, or mapped where it is large; the mapping outlives the file's closing."""
    if rows * dim * 4 > _IN_MEMORY:
        return np.memmap(file, np.float32, "c", shape=(rows, dim))
    file.seek(0)
    return np.frombuffer(file.read(), np.float32).reshape(rows, dim).copy()
