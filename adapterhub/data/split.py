"""A validation split for data that brings none: chosen by the hash of each id, so that it never moves by itself."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from adapterhub.errors import DataError
from adapterhub.recipe import Kind

from .example import Example, gold_labels
from .prompt import input_text

FRACTION = 0.1

Group = Sequence[Example]
Stratum = tuple[str, ...]


def hold_out(
    examples: Iterable[Example],
    kind: Kind,
    fraction: float = FRACTION,
    seed: int = 0,
    *,
    template: str | None = None,
) -> tuple[list[Example], list[Example]]:
    """Return (kept, held out), both in the given order; about `fraction` of each label is held out.

    Rows of equal input (as `template` renders it) stay together, or validation would ask what training has told. The
    choice depends on the ids and the seed alone, not on the order of the rows. A label keeps at least one row to learn
    from. Raises DataError where there are too few different inputs to hold any out.
    """
    examples = list(examples)
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[input_text(example, kind, template)].append(example)
    strata: dict[Stratum, list[Group]] = defaultdict(list)
    for group in groups.values():
        strata[_stratum(group, kind)].append(group)
    held = {
        row.id
        for stratum, count in _quotas(strata, fraction).items()
        for group in sorted(strata[stratum], key=lambda group: _rank(group, seed))[:count]
        for row in group
    }
    if not held:
        raise DataError(
            f"{len(examples)} training example(s) with {len(groups)} different input(s) are too few to hold any out "
            "for validation; add rows or name a validation file"
        )
    return [row for row in examples if row.id not in held], [row for row in examples if row.id in held]


def _stratum(group: Group, kind: Kind) -> Stratum:
    """Return the label of a group; where rows disagree, all of theirs: a stratum of its own, so no label is lost."""
    return tuple(sorted({label for row in group for label in gold_labels(row, kind)})) if kind != "multilabel" else ()


def _quotas(strata: Mapping[Stratum, Sequence[Group]], fraction: float) -> dict[Stratum, int]:
    """Share the held-out groups among the labels: the whole parts first, the rest by largest remainder."""
    shares = {stratum: len(groups) * fraction for stratum, groups in strata.items()}
    total = max(1, round(sum(shares.values())))
    quotas = {stratum: min(int(share), len(strata[stratum]) - 1) for stratum, share in shares.items()}
    by_remainder = sorted(shares, key=lambda stratum: (quotas[stratum] - shares[stratum], stratum))
    for stratum in by_remainder:
        if sum(quotas.values()) < total and quotas[stratum] < len(strata[stratum]) - 1:
            quotas[stratum] += 1
    return quotas


def _rank(group: Group, seed: int) -> bytes:
    identity = min(row.id for row in group)
    return hashlib.sha256(f"{seed}:{identity}".encode()).digest()
