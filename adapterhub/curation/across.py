"""Texts of two splits that are alike: leaks that looking for equal texts misses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .likes import normalise
from .near import band_hashes, jaccard, pieces

# How alike two texts are that are nearly the same, and beyond how many texts that is not looked for here: it takes a
# third of a millisecond each.
LEAST, MOST_TEXTS = 0.85, 100_000
# Texts that one is compared with, of those that share a piece of its signature: a thousand letters from one template
# would be compared a million times.
_MOST_LIKES = 128
Pair = tuple[str, str]
"""A text of the second split, and its like in the first."""


def normalised_pairs(first: Sequence[str], second: Sequence[str]) -> list[Pair]:
    """Return the texts of `second` that are in `first` but for case and punctuation."""
    known = {normalise(text): text for text in reversed(first)}
    return [(text, known[plain]) for text in second if (plain := normalise(text)) in known]


def looked_for(first: Sequence[str], second: Sequence[str]) -> bool:
    """Say whether `near_pairs` looks at so many texts."""
    return len(first) + len(second) <= MOST_TEXTS


def near_pairs(first: Sequence[str], second: Sequence[str]) -> Iterator[Pair]:
    """Yield each text of `second` that shares most of its pieces with one of `first`, and that one.

    Of too many texts none.
    """
    if not first or not second or not looked_for(first, second):
        return
    hashes = band_hashes([*first, *second], LEAST)
    mine, theirs = hashes[: len(first)], hashes[len(first) :]
    likes: dict[int, set[int]] = {}
    for band in range(hashes.shape[1]):
        order = np.argsort(mine[:, band], kind="stable")
        values = mine[order, band]
        low, high = (np.searchsorted(values, theirs[:, band], side) for side in ("left", "right"))
        for row in np.flatnonzero(high > low):
            found = order[low[row] : min(high[row], low[row] + _MOST_LIKES)]
            likes.setdefault(int(row), set()).update(found.tolist())
    for place, others in sorted(likes.items()):
        asked = pieces(second[place])
        for other in sorted(others):
            if jaccard(asked, pieces(first[other])) >= LEAST:
                yield second[place], first[other]
                break
