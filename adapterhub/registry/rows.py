"""Which rows an adapter was made from, as hashes: enough to say what was added, removed or relabelled since.

A line a row, `split input answer`, sorted: sha256 of what is asked and of what is answered, 16 hex digits each. Short
texts can be guessed from a hash, so the file stays where the version was made unless somebody says otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.data.example import Example

_ANSWER_FIELDS = ("label", "labels", "completion", "chosen", "rejected", "positive", "negative")


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


def rows_text(splits: Mapping[str, Iterable[Example]]) -> str:
    """Return what ROWS_FILE holds for the examples of each split."""
    lines = (f"{split} {_asked(each)} {_answered(each)}\n" for split, examples in splits.items() for each in examples)
    return "".join(sorted(lines))


def compare_rows(before: str, after: str) -> dict[str, RowsChange]:
    """Return by split what changed between two such texts.

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
        split, asked, answer = line.rsplit(" ", 2)
        found.setdefault(split, {}).setdefault(asked, Counter())[answer] += 1
    return found


def _asked(example: Example) -> str:
    fields = {name: value for name, value in example.fields.items() if name not in _ANSWER_FIELDS}
    if example.prompt_messages is not None:
        fields["messages"] = list(example.prompt_messages)
    return _hash(fields)


def _answered(example: Example) -> str:
    fields = {name: value for name, value in example.fields.items() if name in _ANSWER_FIELDS}
    return _hash([fields, example.completion, example.weight, example.probs])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
