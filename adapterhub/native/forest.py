"""A layout as the kernels read it: pieces of bounded length, put together into parts that threads take one by one."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A longer segment is the same as a chain of shorter ones, which threads can share.
PIECE = 128
# A line is cut into about so many parts, whatever the number of threads: sums in another order would give other bits.
_PARTS = 16
# Below this, fetching a part's ancestors once more costs more than a second thread saves (tokens seen, summed).
_LEAST_WORK = 4096

_FIELDS = (
    "starts", "lengths", "depths", "part_starts", "members", "parents", "owned", "partials", "shared", "shared_starts",
    "copies",
)  # fmt: skip


class _Struct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _FIELDS),
        ("parts", ctypes.c_int32),
        ("shared_count", ctypes.c_int32),
        ("partial_tokens", ctypes.c_int32),
    )


class Forest:
    """`struct Forest` of source/attention.cpp, with the arrays it points into (int32)."""

    def __init__(self, arrays: dict[str, NDArray[np.int32]], partial_tokens: int) -> None:
        self.arrays = arrays
        counts = (len(arrays["part_starts"]) - 1, len(arrays["shared"]), partial_tokens)
        self._struct = _Struct(*(arrays[name].ctypes.data for name in _FIELDS), *counts)
        self.address = ctypes.addressof(self._struct)


@dataclass(frozen=True)
class _Piece:
    start: int
    length: int
    depth: int
    parent: int


def grow(starts: Sequence[int], stops: Sequence[int], parents: Sequence[int], depths: Sequence[int]) -> Forest:
    """Return the forest of a layout's segments."""
    pieces = _pieces(starts, stops, parents, depths)
    parts = _parts(pieces)
    closures = [_closure(part, pieces) for part in parts]
    users = Counter(piece for closure in closures for piece in closure)
    return _forest(pieces, parts, closures, {piece for piece, count in users.items() if count > 1})


def _pieces(starts: Sequence[int], stops: Sequence[int], parents: Sequence[int], depths: Sequence[int]) -> list[_Piece]:
    found: list[_Piece] = []
    last: list[int] = []  # of each segment
    for start, stop, parent, depth in zip(starts, stops, parents, depths, strict=True):
        above = -1 if parent < 0 else last[parent]
        for at in range(start, stop, PIECE):
            found.append(_Piece(at, min(PIECE, stop - at), depth + at - start, above))
            above = len(found) - 1
        last.append(above)
    return found


def _work(piece: _Piece) -> int:
    return piece.length * piece.depth + piece.length * (piece.length + 1) // 2


def _parts(pieces: list[_Piece]) -> list[list[int]]:
    """Return the pieces of each part, of one tree each, in their order; the parts with most work first."""
    budget = max(_LEAST_WORK, sum(map(_work, pieces)) // _PARTS)
    roots: list[int] = []
    open_parts: dict[int, tuple[list[int], int]] = {}
    found: list[tuple[int, list[int]]] = []
    for i, piece in enumerate(pieces):
        root = i if piece.parent < 0 else roots[piece.parent]
        roots.append(root)
        part, work = open_parts.pop(root, ([], 0))
        part.append(i)
        work += _work(piece)
        if work >= budget:
            found.append((work, part))
        else:
            open_parts[root] = part, work
    found += [(work, part) for part, work in open_parts.values()]
    return [part for _, part in sorted(found, key=lambda each: -each[0])]


def _closure(part: list[int], pieces: list[_Piece]) -> list[int]:
    """Return a part's pieces and all their ancestors, rising, so that parents come first."""
    found: set[int] = set()
    for piece in part:
        while piece >= 0 and piece not in found:
            found.add(piece)
            piece = pieces[piece].parent
    return sorted(found)


def _forest(pieces: list[_Piece], parts: list[list[int]], closures: list[list[int]], shared: set[int]) -> Forest:
    part_starts, members, parents, owned, partials = [0], list[int](), list[int](), list[int](), list[int]()
    copies: dict[int, list[int]] = {piece: [] for piece in sorted(shared)}
    tokens = 0
    for part, closure in zip(parts, closures, strict=True):
        place = {piece: k for k, piece in enumerate(closure)} | {-1: -1}
        own = set(part)
        for piece in closure:
            members.append(piece)
            parents.append(place[pieces[piece].parent])
            owned.append(piece in own)
            partials.append(tokens if piece in shared else -1)
            if piece in shared:
                copies[piece].append(tokens)
                tokens += pieces[piece].length
        part_starts.append(len(members))
    shared_starts = np.cumsum([0, *(len(each) for each in copies.values())])
    arrays = {
        "starts": [piece.start for piece in pieces],
        "lengths": [piece.length for piece in pieces],
        "depths": [piece.depth for piece in pieces],
        "part_starts": part_starts,
        "members": members,
        "parents": parents,
        "owned": owned,
        "partials": partials,
        "shared": list(copies),
        "shared_starts": shared_starts,
        "copies": [token for each in copies.values() for token in each],
    }
    return Forest({name: np.array(values, dtype=np.int32) for name, values in arrays.items()}, tokens)
