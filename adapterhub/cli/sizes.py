"""Numbers of bytes as people write them, and names with a number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from adapterhub.errors import UsageError

_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_POWERS = "KMGT"


def parse_size(text: str, option: str) -> int:
    """Return the bytes of "512MB" (powers of 1000), "1.5GiB" (powers of 1024) or "4096"; raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or (not found[2] and (found[3] or "." in found[1])):
        raise UsageError(f"{option} is {text!r}; write a number of bytes, such as 512MB, 2GiB or 0")
    unit = 1024 if found[3] else 1000
    return int(float(found[1]) * unit ** (_POWERS.index(found[2].upper()) + 1 if found[2] else 0))


def parse_weights(texts: Iterable[str], option: str) -> dict[str, float]:
    """Return name → number of texts such as "support=2"; raises UsageError."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise UsageError(f"{option} is {text!r}; write task=NUMBER with a number above 0, such as support=2")
        if name in found:
            raise UsageError(f"{option} names {name!r} twice")
        found[name] = weight
    return found
