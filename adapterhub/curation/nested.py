"""An order of rows whose beginnings are fair samples of them all: what training on less data takes."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence


def nested_order(ids: Sequence[str], labels: Sequence[Hashable], seed: int) -> list[int]:
    """Return indices of rows in an order drawn by a hash of their ids.

    Each label's rows are spread evenly over it, so that every beginning has the labels as all rows have them.
    """
    drawn = sorted(range(len(ids)), key=lambda row: hashlib.sha256(f"{seed}/{ids[row]}".encode()).digest())
    queues: dict[Hashable, list[int]] = {}
    for row in drawn:
        queues.setdefault(labels[row], []).append(row)
    places = [((i + 0.5) / len(rows), row) for rows in queues.values() for i, row in enumerate(rows)]
    return [row for _, row in sorted(places, key=lambda pair: pair[0])]
