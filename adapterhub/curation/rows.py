"""Rows of files as curation sees them: their text and answer, and each as it was, without all of them in memory.

Files are read once, in any format, and their rows lie in a temporary file; what stays in memory is some sixty bytes a
row, beside their ids while they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.data.example import Example
from adapterhub.data.files import likely_kind, read_rows
from adapterhub.data.prompt import input_text
from adapterhub.data.rows import RowRules, to_example
from adapterhub.recipe import Kind

NO_ANSWER = 0
# How well a row is labelled.
UNLABELLED, SOFT, GOLD = range(3)


class Rows:
    """The rows of some files, numbered through from 0.

    Arrays over rows: `answers` uint64, equal for equal gold answers, NO_ANSWER where there is none; `ranks` int8 from
    UNLABELLED to GOLD; `weights` float64. `labels` are those of classification rows, the likeliest of `probs` where
    there is no gold one, None where there is neither. `counts` says how many rows each file has.
    """

    def __init__(self, kind: Kind, template: str | None = None) -> None:
        self.kind, self.template = kind, template
        self.labels: list[str | None] = []
        self.counts: list[int] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as there are rows to read
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self._answers, self._ranks, self._weights = array("Q"), array("b"), array("d")

    @classmethod
    def read(cls, paths: Sequence[Path], kind: Kind | None = None, template: str | None = None) -> Rows:
        """Read files of one kind, the first file's own where none is named; answers may be missing.

        `template` is a recipe's `prompt.template`, where it says what the base reads. Raises as `read_examples` does,
        and DataError for a row that lacks a field of the template.
        """
        rows = cls(likely_kind(paths[0]) if kind is None else kind, template)
        names: dict[str | None, str | None] = {}
        for path in paths:
            before = len(rows)
            for record, example in read_rows(path, rows.kind, labelled=False):
                rows._append(record, example, names)
            rows.counts.append(len(rows) - before)
        rows._file.flush()
        return rows

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.labels)

    @property
    def answers(self) -> np.ndarray:
        """What each row says the answer is."""
        return np.frombuffer(self._answers, np.uint64)

    @property
    def ranks(self) -> np.ndarray:
        """How well each row is labelled."""
        return np.frombuffer(self._ranks, np.int8)

    @property
    def weights(self) -> np.ndarray:
        """How much each row counts in training."""
        return np.frombuffer(self._weights, np.float64)

    def record(self, row: int) -> dict[str, Any]:
        """Return a row as its file has it."""
        record: dict[str, Any] = self._read(row)[0]
        return record

    def id(self, row: int) -> str:
        """Return a row's id, which is a hash of its content unless it carries one."""
        return str(self._read(row)[1])

    def text(self, row: int) -> str:
        """Return what a row is compared by: what the base reads, and for rows of pairs the answers with it."""
        return str(self._read(row)[2])

    def texts(self) -> Iterator[str]:
        """Yield the text of every row."""
        return map(self.text, range(len(self)))

    def examples(self) -> Iterator[Example]:
        """Yield every row as an example."""
        rules = RowRules(self.kind, labelled=False)
        return (to_example(self.record(row), rules, "") for row in range(len(self)))

    def label_indices(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the labels there are, sorted, and int64 [rows] of indices into them, -1 where there is none."""
        names = tuple(sorted({label for label in self.labels if label is not None}))
        index: dict[str | None, int] = {None: -1, **{name: place for place, name in enumerate(names)}}
        return names, np.array([index[label] for label in self.labels], dtype=np.int64)

    def _read(self, row: int) -> Any:
        start, end = self._ends[row], self._ends[row + 1]
        return json.loads(os.pread(self._file.fileno(), end - start, start))

    def _append(self, record: Any, example: Example, names: dict[str | None, str | None]) -> None:
        text = _compared(example, self.kind, self.template)
        line = json.dumps([record, example.id, text]).encode("ascii")
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))
        gold = _gold(example, self.kind)
        self._answers.append(NO_ANSWER if gold is None else short_hash(gold))
        self._ranks.append(GOLD if gold is not None else SOFT if example.probs else UNLABELLED)
        self._weights.append(example.weight)
        label = _label(example) if self.kind == "classification" else None
        self.labels.append(names.setdefault(label, label))  # one object for equal names


def short_hash(text: str) -> int:
    """Return 64 bits of a text's hash, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") or 1


def _label(example: Example) -> str | None:
    if example.label is not None or not example.probs:
        return example.label
    return max(sorted(example.probs), key=example.probs.__getitem__)


def _gold(example: Example, kind: Kind) -> str | None:
    """Return one text for a row's gold answer. Rows of pairs are their answers, so all of them agree."""
    if kind == "classification":
        return example.label
    if kind == "multilabel":
        return None if example.labels is None else json.dumps(sorted(example.labels))
    return example.completion if kind == "generation" else kind


def _compared(example: Example, kind: Kind, template: str | None) -> str:
    asked = input_text(example, kind, template)
    if kind == "preference":
        return "\n".join((asked, *example.completions))
    if kind == "embedding":
        return "\n".join((asked, *(each for each in (example.positive, example.negative) if each)))
    return asked
