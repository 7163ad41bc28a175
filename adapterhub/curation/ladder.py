"""A ladder: the same test rows answered after training on more and more rows, several times over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adapterhub.errors import DataError

# Test rows times resamples that are drawn at once, so that memory does not follow the test rows.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Ladder:
    """What was wrong: `wrong` float32 [sizes, seeds, rows], from 0 to 1, after training on `sizes` rows, rising.

    Each seed draws its own subsets, the smaller ones within the larger; seed and test row mean the same on each rung.
    """

    sizes: tuple[int, ...]
    wrong: np.ndarray

    def __post_init__(self) -> None:
        """Raise DataError where sizes do not rise or the array has another shape."""
        if list(self.sizes) != sorted(set(self.sizes)) or not self.sizes or self.sizes[0] < 1:
            raise DataError(f"the sizes of a ladder rise from 1 at least; these are {list(self.sizes)}")
        if self.wrong.ndim != 3 or len(self.wrong) != len(self.sizes) or 0 in self.wrong.shape:
            raise DataError(f"{len(self.sizes)} sizes, but outcomes [sizes, seeds, rows] of {list(self.wrong.shape)}")

    @property
    def errors(self) -> np.ndarray:
        """Float64 [sizes]: the mean error on each rung."""
        found: np.ndarray = self.wrong.mean(axis=(1, 2), dtype=np.float64)
        return found

    def rows(self, chosen: np.ndarray) -> Ladder:
        """Return the ladder of some of the test rows, by index or mask."""
        return Ladder(self.sizes, self.wrong[:, :, chosen])

    def below(self, count: int) -> Ladder:
        """Return the ladder's first `count` rungs."""
        return Ladder(self.sizes[:count], self.wrong[:count])

    def resample(self, draws: int, seed: int = 0) -> np.ndarray:
        """Return float64 [draws, sizes]: mean errors where seeds and test rows are drawn again, both together.

        One draw holds for all rungs: what a hard test set or a lucky seed does to one rung it does to the others.
        """
        draw = np.random.default_rng(seed)
        _, seeds, rows = self.wrong.shape
        found = np.empty((draws, len(self.sizes)))
        for part in _parts(draws, max(1, _AT_ONCE // rows)):
            count = part.stop - part.start
            by_row = draw.multinomial(rows, np.full(rows, 1 / rows), count).astype(np.float32) / rows
            by_seed = draw.multinomial(seeds, np.full(seeds, 1 / seeds), count) / seeds
            means = self.wrong.astype(np.float32) @ by_row.T  # [sizes, seeds, draws]
            found[part] = np.einsum("ksd,ds->dk", means, by_seed)
        return found


def _parts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
