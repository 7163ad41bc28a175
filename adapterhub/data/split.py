"""A validation split for data that brings none: chosen by the hash of each id, so that it never moves by itself."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from adapterhub.errors import DataError

from .example import Example

FRACTION = 0.1


def hold_out(
    examples: Iterable[Example], fraction: float = FRACTION, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Return (kept, held out), both in the given order; about `fraction` of each label is held out.

    The choice depends on the ids and the seed alone, not on the order of the rows. A label keeps at least one row
    to learn from. Raises DataError where there are too few examples to hold any out.
    """
    examples = list(examples)
    strata: dict[Any, list[Example]] = defaultdict(list)
    for example in examples:
        strata[example.label].append(example)
    ranked = {label: sorted(rows, key=lambda row: _rank(row.id, seed)) for label, rows in strata.items()}
    held = {row.id for label, count in _quotas(strata, fraction).items() for row in ranked[label][:count]}
    if not held:
        raise DataError(
            f"{len(examples)} training example(s) are too few to hold any out for validation; "
            "add rows or name a validation file"
        )
    return [row for row in examples if row.id not in held], [row for row in examples if row.id in held]


def _quotas(strata: dict[Any, list[Example]], fraction: float) -> dict[Any, int]:
    """Share the held-out rows among the labels: the whole parts first, the rest by largest remainder."""
    shares = {label: len(rows) * fraction for label, rows in strata.items()}
    total = max(1, round(sum(shares.values())))
    quotas = {label: min(int(share), len(strata[label]) - 1) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (quotas[label] - shares[label], str(label)))
    for label in by_remainder:
        if sum(quotas.values()) < total and quotas[label] < len(strata[label]) - 1:
            quotas[label] += 1
    return quotas


def _rank(identity: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{identity}".encode()).digest()
