"""Duplicates by meaning: rows whose features point the same way, looked for inside clusters (SemDeDup)."""

from __future__ import annotations

import numpy as np

from .clusters import cluster, directions
from .likes import FEATURES, Search

# Rows of a cluster, about: pairs in different clusters are not found, and those inside cost its square.
_CLUSTER = 4096
_BLOCK = 1024


def similar_rows(search: Search, features: np.ndarray, least: float, seed: int = 0) -> None:
    """Drop rows whose features [rows, dim] have a cosine of `least` or more to those of one that stays."""
    rows = search.left()
    if len(rows) < 2:
        return
    count = -(-len(rows) // _CLUSTER)
    _, nearest = cluster(features, count, seed)
    for number in range(count):
        members = rows[nearest[rows] == number]
        _inside(search, members, directions(features[members]), least)


def _inside(search: Search, members: np.ndarray, vectors: np.ndarray, least: float) -> None:
    """Go through the members of one cluster, the best labelled first; `vectors` [members, dim] are theirs."""
    for start in range(0, len(members), _BLOCK):
        block = vectors[start : start + _BLOCK]
        cosines = block @ vectors[: start + len(block)].T
        for at in np.flatnonzero((np.tril(cosines, start - 1) >= least).any(axis=1)):
            _settle(search, members, int(start + at), cosines[at, : start + at], least)


def _settle(search: Search, members: np.ndarray, place: int, cosines: np.ndarray, least: float) -> None:
    alike = np.flatnonzero(cosines >= least)
    for other in alike[np.argsort(-cosines[alike], kind="stable")]:
        kept = int(members[other])
        if kept in search.found.dropped:
            continue
        if search.settle(int(members[place]), kept, FEATURES, float(cosines[other])):
            return
