"""Near duplicates: texts that share most of their pieces, found by MinHash (Broder 1997) and judged exactly."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from .likes import NEAR, Search, normalise, shared_groups
from .rows import short_hash

# Characters of one piece: long enough that unlike texts share few, short enough that one typo spoils few.
_PIECE = 4
_PERMUTATIONS = 128
# How surely a pair that is just alike enough shall be among the candidates.
_SURE = 0.98


def near_duplicates(search: Search, least: float) -> None:
    """Drop rows whose normalised text has a Jaccard similarity of `least` or more to that of one that stays."""

    @lru_cache(maxsize=4096)
    def pieces_of(row: int) -> frozenset[bytes]:
        return pieces(search.rows.text(row))

    def likeness(row: int, kept: int) -> float:
        mine, other = pieces_of(row), pieces_of(kept)
        return len(mine & other) / len(mine | other)

    search.by_groups(_candidates(search, least), likeness, least, NEAR)


def pieces(text: str) -> frozenset[bytes]:
    """Return every run of four characters of the normalised text; of a shorter one, itself."""
    plain = normalise(text)
    return frozenset(plain[at : at + _PIECE].encode() for at in range(max(1, len(plain) - _PIECE + 1)))


def _candidates(search: Search, least: float) -> Iterator[list[int]]:
    """Yield groups of rows that agree in a band of their MinHash; the bands lie in a file while they are made."""
    from datasketch import MinHash

    rows = search.left()
    bands, width = band_shape(least)
    empty = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    with tempfile.TemporaryFile() as file:
        for row in rows.tolist():
            mine = empty.copy()
            mine.update_batch(pieces(search.rows.text(row)))
            values = mine.hashvalues[: bands * width].reshape(bands, width)
            file.write(np.array([_mixed(band) for band in values], np.uint64).tobytes())
        file.flush()
        if not len(rows):
            return
        hashes = np.memmap(file, np.uint64, "r", shape=(len(rows), bands))
        for band in range(bands):
            for group in shared_groups(np.ascontiguousarray(hashes[:, band])):
                yield rows[group].tolist()


def band_shape(least: float) -> tuple[int, int]:
    """Return how many bands of how many values find pairs of this similarity surely: the widest that still do."""
    for width in range(_PERMUTATIONS, 1, -1):
        bands = _PERMUTATIONS // width
        if 1 - (1 - least**width) ** bands >= _SURE:
            return bands, width
    return _PERMUTATIONS, 1


def _mixed(band: np.ndarray) -> int:
    return short_hash(band.tobytes().hex())
