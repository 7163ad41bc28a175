"""From which probability on a task gives its likeliest label, and below which it gives none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

KEPT = 0.95  # of the rightly answered rows, where nothing shows what is to be rejected
_DIGITS = 12


@dataclass(frozen=True)
class Threshold:
    """A probability below which no label is given, None for always one; and in words where it comes from."""

    reject_below: float | None
    reason: str


def separating(inside: Values, outside: Values) -> Threshold:
    """Return the threshold with the highest balanced accuracy: the mean of in-scope kept and out-of-scope rejected.

    Both are probabilities of the likeliest label, [rows]. Of equally good thresholds the lowest: it rejects least. None
    where none does better than always answering.
    """
    import numpy as np

    values = np.unique(np.concatenate([inside, outside]))
    rows = f"{len(inside)} validation rows and {len(outside)} out-of-scope ones"
    # A threshold just above each value but the highest: what equals the value is rejected.
    kept = len(inside) - np.searchsorted(np.sort(inside), values[:-1], side="right")
    rejected = np.searchsorted(np.sort(outside), values[:-1], side="right")
    pairs = kept * len(outside) + rejected * len(inside)  # whole numbers, so that equally good is equal
    best = int(np.argmax(pairs)) if len(pairs) else -1
    if best < 0 or pairs[best] <= len(inside) * len(outside):
        return Threshold(None, f"none: on {rows} no threshold does better than always answering")
    return Threshold(
        _between(float(values[best]), float(values[best + 1])),
        f"the best balanced accuracy on {rows}: {kept[best] / len(inside):.1%} kept, "
        f"{rejected[best] / len(outside):.1%} rejected",
    )


def keeping(right: Values, share: float = KEPT) -> Threshold:
    """Return the threshold that rejects as many rightly answered rows as `share` allows; `right` as in `separating`.

    None where the rows are too few to leave any out, or all equally likely.
    """
    import numpy as np

    values = np.sort(right)
    spared = int(len(values) * (1 - share) + 1e-9)
    lower = values[values < values[spared]] if spared else values[:0]
    if not len(lower):
        return Threshold(
            None,
            f"none: {len(values)} rightly answered validation rows are too few or too alike to part {share:.0%} off",
        )
    return Threshold(
        _between(float(lower[-1]), float(values[spared])),
        f"keeps {1 - len(lower) / len(values):.1%} of {len(values)} rightly answered validation rows",
    )


def _between(low: float, high: float) -> float:
    """Return the shortest decimal near the middle of the two, so that answers that round otherwise move nothing."""
    middle = (low + high) / 2
    return next((each for each in (round(middle, digits) for digits in range(2, _DIGITS)) if low < each < high), middle)
