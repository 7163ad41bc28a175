"""Duplicates: rows that say what another row says already.

Rows are gone through from the best labelled to the worst, and a row goes where one that stays is its like: the same
text, the same but for case and punctuation, most of the same pieces of text (MinHash finds the candidates, their exact
Jaccard similarity decides), or features that point the same way (SemDeDup: Abbas et al. 2023). So within each of these
steps a row that goes is close to the one kept in its place, which chains of likenesses would not promise.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from .rows import NO_ANSWER, Rows, short_hash

# Same text, and the rest in falling certainty. Only the first lets a row go whose answer is another.
EXACT, NORMALISED, NEAR, FEATURES = "exact", "normalised", "near", "features"
# Rows of one group that a further row is compared with: ten thousand letters from one template must not take hours.
_MOST_TRIED = 128
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Duplicate:
    """A row that goes: the row kept in its place, how they are alike, and by how much (1 for equal texts)."""

    row: int
    kept: int
    reason: str
    similarity: float = 1.0
    conflict: bool = False


@dataclass
class Found:
    """What was found: duplicates by row, and how pairs of rows with different gold answers are alike.

    The better labelled of a pair comes first. Where the texts are the same the other goes, and its `Duplicate` says
    `conflict`; all other pairs both stay.
    """

    dropped: dict[int, Duplicate] = field(default_factory=dict)
    conflicts: dict[tuple[int, int], str] = field(default_factory=dict)

    def follow(self) -> None:
        """Where a row went for one that went itself, at a later step, name the row that was kept for both."""
        for row, each in self.dropped.items():
            while (next_one := self.dropped.get(each.kept)) is not None:
                similarity = min(each.similarity, next_one.similarity)
                each = replace(each, kept=next_one.kept, reason=next_one.reason, similarity=similarity)
            self.dropped[row] = each

    def counts(self) -> Mapping[str, int]:
        """Return how many rows go for each reason."""
        return Counter(each.reason for each in self.dropped.values())


class Search:
    """A search for duplicates among rows, of which the first `held` always stay (those of another file).

    The steps share what was found: what one has dropped, the next does not look at.
    """

    def __init__(self, rows: Rows, held: int = 0) -> None:
        self.rows, self.held, self.found = rows, held, Found()
        place = np.arange(len(rows))
        # The better labelled first: of equal rank the heavier, of equal weight the earlier; before all those held.
        self.order = np.lexsort((place, -rows.weights, -rows.ranks.astype(int), place >= held))
        self._answers = rows.answers

    def left(self) -> np.ndarray:
        """Return the rows that still stay, the best labelled first."""
        gone = np.zeros(len(self.rows), bool)
        gone[list(self.found.dropped)] = True
        return self.order[~gone[self.order]]

    def settle(self, row: int, kept: int, reason: str, similarity: float = 1.0) -> bool:
        """Let `row` go for `kept`, its like, unless it says something else; return whether it goes."""
        if row < self.held:
            return False
        differ = NO_ANSWER != self._answers[row] != self._answers[kept] != NO_ANSWER
        if differ:
            self.found.conflicts.setdefault((kept, row), reason)
        if differ and reason != EXACT:
            return False
        self.found.dropped[row] = Duplicate(row, kept, reason, similarity, bool(differ))
        return True

    def by_text(self, normalised: bool = True) -> None:
        """Drop rows of equal texts, or of texts that are equal once normalised."""
        make = normalise if normalised else str.strip
        hashes = np.fromiter((short_hash(make(text)) for text in self.rows.texts()), np.uint64, len(self.rows))
        for group in shared_groups(hashes[self.order]):
            leaders: list[int] = []
            for row in self.order[group].tolist():
                if not any(self._same_text(row, kept, make) for kept in leaders):
                    leaders.append(row)

    def _same_text(self, row: int, kept: int, make: Callable[[str], str]) -> bool:
        mine, other = self.rows.text(row).strip(), self.rows.text(kept).strip()
        if mine == other:
            return self.settle(row, kept, EXACT)
        return make(mine) == make(other) and self.settle(row, kept, NORMALISED)

    def by_groups(
        self, groups: Iterable[Sequence[int]], likeness: Callable[[int, int], float], least: float, reason: str
    ) -> None:
        """Drop rows that are alike by `least` to one that stays, where both are in one of the groups."""
        places = np.empty(len(self.rows), np.int64)
        places[self.order] = np.arange(len(self.rows))
        members: dict[int, list[int]] = defaultdict(list)
        for number, group in enumerate(groups):
            for row in group:
                members[row].append(number)
        leaders: dict[int, list[int]] = defaultdict(list)
        for row in sorted(members, key=places.__getitem__):
            near = dict.fromkeys(kept for number in members[row] for kept in leaders[number])
            if not self._goes(row, near, likeness, least, reason):
                for number in members[row]:
                    if len(leaders[number]) < _MOST_TRIED:
                        leaders[number].append(row)

    def _goes(
        self, row: int, near: Iterable[int], likeness: Callable[[int, int], float], least: float, reason: str
    ) -> bool:
        """Try the likest rows that stay, one after the other."""
        if row < self.held:
            return False
        alike = [(likeness(row, kept), kept) for kept in near]
        for similarity, kept in sorted(alike, key=lambda each: -each[0]):
            if similarity >= least and self.settle(row, kept, reason, similarity):
                return True
        return False


def normalise(text: str) -> str:
    """Return the letters and digits of a text, case and width folded, other characters as single spaces.

    A text without letters and digits is what it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():
        plain = _NO_WORD.sub(" ", folded)
    else:  # marks belong to their letters, which the pattern does not know
        plain = "".join(each if each.isalnum() or unicodedata.category(each)[0] == "M" else " " for each in folded)
    return " ".join(plain.split()) or text.strip()


def shared_groups(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, for each value that comes more than once, the places where it does, ascending."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=~values[order[:1]]))
    for start, end in pairwise([*starts.tolist(), len(values)]):
        if end - start > 1:
            yield order[start:end]
