"""Which rows an adapter was made from, as hashes: enough to say what was added, removed or relabelled since.

A line a row, `split input answer`, sorted: sha256 of what is asked and of what is answered, 16 hex digits each. Short
texts can be guessed from a hash, so the file goes to no Hub; an exported archive has it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.data.example import ANSWERS, Example, asked_of
from adapterhub.errors import CorruptAdapter

from .bundle import ROWS_FILE


@dataclass(frozen=True)
class RowsChange:
    """Of one split: rows that came, that went, whose answer changed, and that stayed as they were."""

    added: int
    removed: int
    relabelled: int
    same: int

    def to_record(self) -> dict[str, int]:
        """Return the JSON record."""
        return dict(vars(self))


def rows_text(splits: Mapping[str, Iterable[Example]], kind: str) -> str:
    """Return what ROWS_FILE holds for the examples, of one kind, of each split."""
    found = (
        f"{split} {_hash(asked_of(each, kind))} {_answered(each, kind)}\n"
        for split, examples in splits.items()
        for each in examples
    )
    return "".join(sorted(found))


def compare_rows(before: str, after: str) -> dict[str, RowsChange]:
    """Return by split what changed between two such texts; raises CorruptAdapter for what is none.

    A row that is there with another answer was relabelled; several rows may ask the same.
    """
    old, new = _read(before), _read(after)
    return {split: _change(old.get(split, {}), new.get(split, {})) for split in sorted({*old, *new})}


def _change(old: Mapping[str, Counter[str]], new: Mapping[str, Counter[str]]) -> RowsChange:
    added = removed = relabelled = same = 0
    for asked in {*old, *new}:
        was, now = old.get(asked, Counter()), new.get(asked, Counter())
        kept = (was & now).total()
        gone, come = was.total() - kept, now.total() - kept
        moved = min(gone, come)
        same, relabelled = same + kept, relabelled + moved
        added, removed = added + come - moved, removed + gone - moved
    return RowsChange(added, removed, relabelled, same)


def _read(text: str) -> dict[str, dict[str, Counter[str]]]:
    found: dict[str, dict[str, Counter[str]]] = {}
    for line in text.splitlines():
        parts = line.rsplit(" ", 2)
        if len(parts) != 3:
            raise CorruptAdapter(f"{ROWS_FILE} has the line {line!r:.80}; expected a split and two hashes")
        split, asked, answer = parts
        found.setdefault(split, {}).setdefault(asked, Counter())[answer] += 1
    return found


def _answered(example: Example, kind: str) -> str:
    fields = {name: value for name, value in example.fields.items() if name in ANSWERS[kind]}
    return _hash([fields, example.completion if kind == "generation" else None, example.weight, example.probs])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
