"""Near duplicates: texts that share most of their pieces, found by MinHash (Broder 1997) and judged exactly."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from .likes import NEAR, Search, normalise, shared_groups

# Characters of one piece: long enough that unlike texts share few, short enough that one typo spoils few.
_PIECE = 4
_PERMUTATIONS = 128
# How surely a pair that is just alike enough shall be among the candidates.
_SURE = 0.98


def near_duplicates(search: Search, least: float) -> None:
    """Drop rows whose normalised text has a Jaccard similarity of `least` or more to that of one that stays."""
    rows = search.left()
    hashes = band_hashes((search.rows.text(row) for row in rows.tolist()), least)
    groups = (
        rows[group].tolist()
        for band in range(hashes.shape[1])
        for group in shared_groups(np.ascontiguousarray(hashes[:, band]))
    )

    @lru_cache(maxsize=4096)
    def pieces_of(row: int) -> frozenset[bytes]:
        return pieces(search.rows.text(row))

    search.by_groups(groups, lambda row, kept: jaccard(pieces_of(row), pieces_of(kept)), least, NEAR)


def pieces(text: str) -> frozenset[bytes]:
    """Return every run of four characters of the normalised text; of a shorter one, itself."""
    plain = normalise(text)
    return frozenset(plain[at : at + _PIECE].encode() for at in range(max(1, len(plain) - _PIECE + 1)))


def jaccard(first: frozenset[bytes], second: frozenset[bytes]) -> float:
    """Return how much of what either has both have; neither is empty."""
    return len(first & second) / len(first | second)


def band_hashes(texts: Iterable[str], least: float) -> np.ndarray:
    """Return uint64 [texts, bands], memory-mapped: texts as alike as `least` agree in at least one, all but surely."""
    from datasketch import MinHash

    bands, width = band_shape(least)
    mixers = np.random.default_rng(1).integers(1, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    empty = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    count = 0
    with tempfile.TemporaryFile() as file:
        for text in texts:
            mine = empty.copy()
            mine.update_batch(pieces(text))
            values = mine.hashvalues[: bands * width].astype(np.uint64).reshape(bands, width)
            file.write((values * mixers).sum(axis=1, dtype=np.uint64).tobytes())
            count += 1
        file.flush()
        return np.memmap(file, np.uint64, "r", shape=(count, bands)) if count else np.empty((0, bands), np.uint64)


def band_shape(least: float) -> tuple[int, int]:
    """Return how many bands of how many values find pairs of this similarity surely: the widest that still do."""
    for width in range(_PERMUTATIONS, 1, -1):
        bands = _PERMUTATIONS // width
        if 1 - (1 - least**width) ** bands >= _SURE:
            return bands, width
    return _PERMUTATIONS, 1
