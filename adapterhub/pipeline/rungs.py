"""The rungs of a ladder: which rows each trains on, and what was wrong on the measured rows, kept once it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.curation.ladder import Ladder
from adapterhub.curation.nested import nested_order
from adapterhub.data.example import Example
from adapterhub.errors import UsageError
from adapterhub.registry.disk import replacing

if TYPE_CHECKING:
    import numpy as np

# Sizes halve from all rows down, so that the back-test of the largest foretells a doubling.
MOST_SIZES, LEAST_ROWS, ROWS_A_LABEL = 5, 8, 2

Watch = Callable[[str, int, int], None]
"""Told what goes on, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Rung:
    """One training: on the rows at these places of the training rows, with this seed."""

    size: int
    seed: int
    rows: tuple[int, ...]

    def key(self, examples: Sequence[Example], seed: int | None) -> str:
        """Return a name for it among all of one ladder's folder; `seed` None where training draws nothing."""
        said = json.dumps([seed, sorted(examples[row].id for row in self.rows)])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def ladder_sizes(rows: int, labels: int) -> tuple[int, ...]:
    """Return the sizes of a ladder, rising to all rows; the least has two rows a label and eight in all."""
    least = max(LEAST_ROWS, ROWS_A_LABEL * labels)
    sizes = [rows]
    while len(sizes) < MOST_SIZES and sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return tuple(reversed(sizes))


def check_sizes(sizes: Sequence[int], rows: int) -> tuple[int, ...]:
    """Return the sizes that people ask for, in order. Raises UsageError."""
    found = tuple(sorted(set(sizes)))
    if len(found) < 3 or found[0] < 2 or found[-1] > rows:
        raise UsageError(
            f"--sizes {','.join(map(str, sizes))}: expected three different numbers of rows at least, from 2 to "
            f"{rows}, which is all there are to train on"
        )
    return found


def rungs_of(examples: Sequence[Example], sizes: Sequence[int], seeds: Sequence[int]) -> list[Rung]:
    """Return the trainings of a ladder, the small ones first; each seed draws its own nested subsets."""
    ids, labels = [each.id for each in examples], [each.label for each in examples]
    orders = {seed: nested_order(ids, labels, seed) for seed in seeds}
    return [Rung(size, seed, tuple(orders[seed][:size])) for size in sizes for seed in seeds]


class Outcomes:
    """What was wrong after each training, in a folder: a file a rung, whole or not there."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which need not exist yet."""
        self._folder = folder

    def get(self, key: str) -> np.ndarray | None:
        """Return float32 [measured rows] of a rung, None where it is not known, or what is kept is damaged."""
        import numpy as np

        try:
            found: np.ndarray = np.load(self._folder / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found

    def put(self, key: str, wrong: Any) -> None:
        """Keep what was wrong."""
        import numpy as np

        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / f"{key}.npy") as temporary, temporary.open("xb") as file:
            np.save(file, np.asarray(wrong, np.float32))

    def ladder(self, sizes: Sequence[int], keys: Sequence[str]) -> Ladder:
        """Return the ladder of rungs that are all known; keys in the order of sizes, then seeds."""
        import numpy as np

        found = np.stack([each for each in map(self.get, keys) if each is not None])
        return Ladder(tuple(sizes), found.reshape(len(sizes), len(keys) // len(sizes), -1))
