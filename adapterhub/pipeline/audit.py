"""Which labels of a file are likely wrong: features of a base, heads that did not see the row, a queue for people."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base
from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.errors import DataError
from adapterhub.registry.disk import replace_file

if TYPE_CHECKING:
    import numpy as np

# Chosen on planted flips, see benchmarks/RESULTS.md. C of each head; the cosine from which two rows say the same.
BASE = "all-minilm-l6-v2"
FOLDS = 5
_BASE_STRENGTH = 0.01
_WORDS_STRENGTH = 10.0
ALIKE = 0.95
COLUMNS = ("id", "given", "suggested", "score", "why", "twin", "where", "text")

Stage = Callable[[str], AbstractContextManager[None]]
"""Told what happens next; the context it returns lasts as long as that does."""


@dataclass(frozen=True)
class Doubt:
    """A row to look at. `why` is "model" where heads doubt its label, "twin" where only a near duplicate does.

    `score` is the suggested label's probability less the given one's, below 0 only for twins. `twin` is the id of the
    nearest row that says nearly the same under another label, if there is one.
    """

    id: str
    given: str
    suggested: str
    score: float
    why: str
    twin: str | None
    where: str
    text: str

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return dict(vars(self))


@dataclass(frozen=True)
class Audit:
    """What was found in `rows` rows: those to look at, the most suspicious first, and pairs of near duplicates."""

    data: str
    base: str
    rows: int
    labels: tuple[str, ...]
    doubts: Sequence[Doubt]
    twins: int


def audit(
    path: Path, base: Base, *, alike: float = ALIKE, seed: int = 0, stage: Stage = lambda _: nullcontext()
) -> Audit:
    """Return the rows of a classification file whose labels are doubted.

    Raises FileMissing, and DataError for rows that are wrong, too few, or all of one label.
    """
    examples = list(read_examples(path, "classification"))
    if len(examples) < FOLDS:
        raise DataError(f"{path}: there are {len(examples)} rows; an audit needs {FOLDS} at least, and better hundreds")
    labels = sorted({str(example.label) for example in examples})
    if len(labels) < 2:
        raise DataError(f"{path}: every row has the label {labels[0]!r}; an audit needs two labels at least")
    counts = Counter(example.label for example in examples)
    if len([label for label in labels if counts[label] > 1]) < 2:
        rare = next(label for label in labels if counts[label] == 1)
        raise DataError(f"{path}: the label {rare!r} has one row; an audit needs two labels with two rows at least")
    with stage(f"{len(examples)} texts through {base.name}"):
        features = text_features(base, [example.text for example in examples])
    with stage(f"heads for {len(labels)} labels, {FOLDS} folds"):
        found, twins = judge(examples, features, labels, alike=alike, seed=seed)
    return Audit(str(path), base.name, len(examples), tuple(labels), found, twins)


def text_features(base: Base, texts: Sequence[str]) -> np.ndarray:
    """Return float32 [texts, dim]; of a text that is longer than the base reads, its beginning. Kept for next time."""
    from adapterhub.base.feature_store import stored_features

    return stored_features(base, texts)


def judge(
    examples: Sequence[Example], features: np.ndarray, labels: Sequence[str], *, alike: float = ALIKE, seed: int = 0
) -> tuple[list[Doubt], int]:
    """Return the doubted rows of `examples` given their features [rows, dim], and how many pairs are near duplicates.

    Of a pair of near duplicates with different labels one must be wrong, so where heads doubt neither, the more
    doubtful one follows them.
    """
    import numpy as np

    from adapterhub.labeling.audit import doubts, find_suspects, find_twins

    given = np.array([labels.index(str(example.label)) for example in examples])
    chances = probabilities(features, [example.text for example in examples], given, len(labels), seed=seed)
    suspects = [(each.row, each.suggested, each.score, "model") for each in find_suspects(chances, given)]
    rows = {row for row, *_ in suspects}
    twins = find_twins(features, given, alike)
    partner: dict[int, int] = {}
    margins, _ = doubts(chances, given)
    for pair in twins:
        partner.setdefault(pair.first, pair.second)
        partner.setdefault(pair.second, pair.first)
        if pair.first not in rows and pair.second not in rows:
            row, other = sorted((pair.first, pair.second), key=lambda each: (-margins[each], each))
            rows.add(row)
            margin = float(chances[row, given[other]] - chances[row, given[row]])
            suspects.append((row, int(given[other]), margin, "twin"))
    suspects.sort(key=lambda each: -each[2])
    found = []
    for row, suggested, score, why in suspects:
        example, twin = examples[row], partner.get(row)
        told = None if twin is None else examples[twin].id
        given_label, better = labels[given[row]], labels[suggested]
        found.append(Doubt(example.id, given_label, better, round(score, 6), why, told, example.where, example.text))
    return found, len(twins)


def probabilities(
    features: np.ndarray, texts: Sequence[str], given: np.ndarray, classes: int, *, seed: int = 0
) -> np.ndarray:
    """Return float64 [rows, classes]: the mean of two heads that did not see the row, one on features, one on words.

    The two err on different rows: together they are right on more than either, see benchmarks/RESULTS.md.
    """
    from adapterhub.heads import out_of_fold, standardise
    from adapterhub.labeling.words import word_features

    found = out_of_fold(standardise(features), given, classes, folds=FOLDS, seed=seed, strength=_BASE_STRENGTH)
    words = word_features(texts)
    if words is None:
        return found
    by_words = out_of_fold(words, given, classes, folds=FOLDS, seed=seed, strength=_WORDS_STRENGTH)
    mean: np.ndarray = (found + by_words) / 2
    return mean


def write_queue(path: Path, found: Audit) -> None:
    """Write the doubted rows as CSV, in one step; `adapterhub label review` reads it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(each.to_record() for each in found.doubts)
    replace_file(path, text.getvalue())
