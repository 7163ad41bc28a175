"""Vectors of things kept on disk under what they are of, so that each is computed once, however often it is asked for.

A folder holds `vectors`, float32 vector after vector, and `keys`, the hash of what each is of, in the same order. Both
only grow. A vector counts once its key is there, and the key is written after the vector has reached the disk: whatever
stops the program, what was counted is whole.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from adapterhub.errors import BaseError

from .cache import explained, locked

# Things of one commit, which is what an interruption can lose.
CHUNK = 512
# Where a result is larger than this it lies in a file without a name, not in memory.
_IN_MEMORY = 64 << 20
_KEY = 16

T = TypeVar("T")
Report = Callable[[int], None]
"""Hears how many are done."""


class VectorStore:
    """Vectors [dim] in a folder. Several processes may use it at once; `name` is whose they are, for messages.

    `vectors` and `keys` are the names of its files; a folder that is not there is made.
    """

    def __init__(self, folder: Path, name: str, dim: int, vectors: str = "vectors") -> None:
        self.folder, self.dim = folder, dim
        self._name, self._file = name, folder / vectors
        self._count = 0
        self._heads, self._tails = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._order = np.empty(0, np.int64)
        self._vectors = np.empty((0, dim), np.float32)
        with explained(name, folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._look()

    def __len__(self) -> int:
        """How many vectors are known."""
        return self._count

    def all(
        self,
        given: Iterable[T],
        key: Callable[[T], bytes],
        compute: Callable[[list[T], list[int]], np.ndarray],
        progress: Report | None = None,
    ) -> np.ndarray:
        """Return float32 [given, dim], memory-mapped where it is large; see `take`. Things stream.

        Raises AdapterHubError where the disk is full, and what `compute` raises; what was kept before stays.
        """
        with explained(self._name, self.folder), tempfile.TemporaryFile(dir=self.folder) as file:
            done = 0
            source = iter(given)
            while chunk := list(islice(source, CHUNK)):
                file.write(self.take(chunk, key, compute, done).tobytes())
                done += len(chunk)
                if progress is not None:
                    progress(done)
            file.flush()
            return _mapped(file, done, self.dim)

    def take(
        self,
        given: Sequence[T],
        key: Callable[[T], bytes],
        compute: Callable[[list[T], list[int]], np.ndarray],
        first: int = 0,
    ) -> np.ndarray:
        """Return float32 [given, dim] of things that differ where their keys do; what is missing is computed and kept.

        `compute` makes float32 [n, dim] of n things, told which they are, counted from `first`.
        """
        keys = np.frombuffer(b"".join(_hash(key(each)) for each in given), np.uint64).reshape(-1, 2)
        places = self._find(keys)
        if (missing := np.flatnonzero(places < 0)).size:
            once = {keys[row].tobytes(): row for row in reversed(missing.tolist())}
            rows = sorted(once.values())
            self._keep(compute([given[row] for row in rows], [first + row for row in rows]), keys[rows])
            places = self._find(keys)
        found: np.ndarray = self._vectors[places]
        return found

    def _keep(self, vectors: np.ndarray, keys: np.ndarray) -> None:
        """Append vectors and then their keys, behind what any process has written by now."""
        with locked(self.folder, "write"):
            self._look()
            with _writable(self._file) as file:
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
        keys, vectors = self.folder / "keys", self._file
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


def _hash(said: bytes) -> bytes:
    return hashlib.blake2b(said, digest_size=_KEY).digest()


def _writable(path: Path) -> BinaryIO:
    path.touch(exist_ok=True)
    return path.open("r+b")


def _mapped(file: BinaryIO, rows: int, dim: int) -> np.ndarray:
    """Return what was written to a file: read, or mapped where it is large; the mapping outlives the file's closing."""
    if rows * dim * 4 > _IN_MEMORY:
        return np.memmap(file, np.float32, "c", shape=(rows, dim))
    file.seek(0)
    return np.frombuffer(file.read(), np.float32).reshape(rows, dim).copy()
