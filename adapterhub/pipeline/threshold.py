"""From which probability on a task gives its likeliest label, and below which it gives none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

KEPT = 0.95  # of the rightly answered rows, where nothing shows what is to be rejected


@dataclass(frozen=True)
class Threshold:
    """A probability below which no label is given, None for always one; and in words where it comes from."""

    reject_below: float | None
    reason: str


def separating(inside: Values, outside: Values) -> Threshold:
    """Return the threshold with the highest balanced accuracy: the mean of in-scope kept and out-of-scope rejected.

    Both are probabilities of the likeliest label, [rows]. Of a range of equally good thresholds the middle one, of
    several such ranges the lowest: it rejects least. None where no threshold does better than always answering.
    """
    import numpy as np

    grid = candidates()
    kept = len(inside) - np.searchsorted(np.sort(inside), grid)
    rejected = np.searchsorted(np.sort(outside), grid)
    pairs = kept * len(outside) + rejected * len(inside)  # whole numbers, so that equally good is equal
    rows = f"{len(inside)} validation rows and {len(outside)} out-of-scope ones"
    if pairs.max() <= len(inside) * len(outside):
        return Threshold(None, f"none: on {rows} no threshold does better than always answering")
    best = _middle(pairs == pairs.max())
    return Threshold(
        float(grid[best]),
        f"the best balanced accuracy on {rows}: {kept[best] / len(inside):.1%} kept, "
        f"{rejected[best] / len(outside):.1%} rejected",
    )


def keeping(right: Values, share: float = KEPT) -> Threshold:
    """Return the threshold that rejects as many rightly answered rows as `share` allows; `right` as in `separating`.

    None where the rows are too few to leave any out, or too alike.
    """
    import numpy as np

    grid = candidates()
    rejected = np.searchsorted(np.sort(right), grid)
    most = rejected[rejected <= len(right) * (1 - share) + 1e-9].max(initial=0)
    if not most:
        return Threshold(
            None, f"none: {len(right)} rightly answered validation rows are too few, or too alike, to part"
        )
    return Threshold(
        float(grid[_middle(rejected == most)]),
        f"keeps {1 - most / len(right):.1%} of {len(right)} rightly answered validation rows",
    )


def candidates() -> Values:
    """Return all thresholds there are, ascending: of three digits, and near 1 of one digit after three to five nines.

    So few that answers which round otherwise, as in a batch with others they do, hardly ever give another threshold.
    """
    import numpy as np

    near = [round(1 - digit / 10**places, places) for places in (4, 5, 6) for digit in range(9, 0, -1)]
    return np.array([*(thousandth / 1000 for thousandth in range(1, 1000)), *near])


def _middle(chosen: NDArray[Any]) -> int:
    """Return the index in the middle of the first run of what is chosen, [candidates] of booleans."""
    start = int(chosen.argmax())
    rest = chosen[start:]
    length = len(rest) if rest.all() else int(rest.argmin())
    return start + (length - 1) // 2
