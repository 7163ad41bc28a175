"""Which rows of files go, because another says what they say already, and what is written of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .likes import FEATURES, NEAR, Found, Search
from .near import near_duplicates
from .rows import Rows
from .similar import similar_rows


@dataclass(frozen=True)
class Rules:
    """What counts as a duplicate. `near` is the least Jaccard similarity, `features` the least cosine; None is off."""

    normalised: bool = True
    near: float | None = 0.85
    features: float | None = None


def find_duplicates(
    rows: Rows,
    rules: Rules = Rules(),
    *,
    held: int = 0,
    features: np.ndarray | None = None,
) -> Found:
    """Find the duplicates among rows; the first `held` stay whatever they are like.

    `features` float32 [rows, dim] are needed where the rules ask for them.
    """
    search = Search(rows, held)
    search.by_text(rules.normalised)
    if rules.near is not None:
        near_duplicates(search, rules.near)
    if rules.features is not None:
        assert features is not None
        similar_rows(search, features, rules.features)
    search.found.follow()
    return search.found


def reasons_of(found: Found, rows: Rows, name: Callable[[int], str]) -> dict[int, dict[str, Any]]:
    """Return what is written of each row that goes; `name` says in which file the row lies that was kept for it."""
    reasons: dict[int, dict[str, Any]] = {}
    for row, each in found.dropped.items():
        reasons[row] = {"reason": each.reason, "kept_id": rows.id(each.kept), "kept_in": name(each.kept)}
        if each.reason in (NEAR, FEATURES):
            reasons[row]["similarity"] = round(each.similarity, 4)
        if each.conflict:
            reasons[row]["conflict"] = True
    return reasons
