"""Feedback: what a served answer should have been, one JSON object a line.

Each line holds all that turns it into an example later, whatever has become of the server since:

```json
{"format": 1, "id": "clsf-ab12…", "index": 0, "at": "2026-01-31T12:00:00Z", "task": "support-intent",
 "model": "support-intent@prod", "digest": "sha256:…", "kind": "classification", "input": {"fields": {"text": "…"}},
 "predicted": {"label": "refund", "probs": {"refund": 0.7, "parcel": 0.3}}, "right": {"label": "parcel"}, "key": "shop"}
```

`id` and `index` are those of the answer and of its choice or entry. `input` holds `fields` (what an example of the task
holds besides its answer), or `text` or `token_ids` where a prompt was continued as it stood, past the task's template.
`right` has the form of `predicted` without `probs`. `key` is the name of the API key that sent it, or null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from adapterhub.errors import DataError, FileMissing

from .append import append_lines

FORMAT = 1
SOURCE = "feedback"
_ANSWERS = {"classification": "label", "multilabel": "labels", "generation": "completion"}


@dataclass(frozen=True)
class Feedback:
    """One line; `task` and `digest` are None where the bare base answered."""

    id: str
    index: int
    at: str
    task: str | None
    model: str
    digest: str | None
    kind: str
    input: Mapping[str, Any]
    predicted: Mapping[str, Any]
    right: Mapping[str, Any]
    key: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether the answer was right as it was."""
        name = _ANSWERS[self.kind]
        ours, theirs = self.predicted.get(name), self.right[name]
        return sorted(ours or ()) == sorted(theirs) if name == "labels" else ours == theirs

    def to_record(self) -> dict[str, Any]:
        """Return the JSON-able form of the line."""
        return {"format": FORMAT, **asdict(self)}

    def to_row(self) -> dict[str, Any]:
        """Return the row of an example with the right answer; raises DataError where the input is no task's."""
        given = self.input.get("fields")
        if not isinstance(given, Mapping):
            raise DataError(
                f"feedback {self.id!r} is on a text that was continued as it stood, past the task's template; it makes "
                "no example"
            )
        return {**given, **self.right, "id": f"{self.id}-{self.index}", "source": SOURCE}


class FeedbackWriter:
    """Appends lines, each on the disk before `add` returns; threads and processes may share a file.

    A writer that was killed may leave a line without its end. Nobody was told that it is kept, so the next one cuts it
    off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, feedback: Feedback) -> None:
        """Append a line; raises OSError where the disk takes it not, and then no whole line is there."""
        data = json.dumps(feedback.to_record(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(self.path, data, mode=0o600)


def read_feedback(path: Path) -> Iterator[Feedback]:
    """Yield all lines in their order; of several on one answer the last counts (`latest`).

    A last line without its end is one that nobody was told is kept, and is left out. Raises FileMissing, and DataError
    naming file and line.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise FileMissing(f"there is no file of feedback at {str(path)!r}") from error
    with file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _parse(line, f"{path}:{number}")


def latest(lines: Iterator[Feedback]) -> list[Feedback]:
    """Return what was said last on each answer, in the order of the first word on it."""
    found: dict[tuple[str, int], Feedback] = {}
    for line in lines:
        found[line.id, line.index] = line
    return list(found.values())


_TYPES: Mapping[str, tuple[type, ...]] = {
    "id": (str,),
    "index": (int,),
    "at": (str,),
    "task": (str, type(None)),
    "model": (str,),
    "digest": (str, type(None)),
    "kind": (str,),
    "input": (dict,),
    "predicted": (dict,),
    "right": (dict,),
    "key": (str, type(None)),
}


def _parse(line: bytes, where: str) -> Feedback:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the line is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f'{where}: expected an object with "format": {FORMAT}; got {str(record)[:80]}')
    for field in fields(Feedback):
        value = record.get(field.name)
        if type(value) not in _TYPES[field.name]:
            raise DataError(f"{where}: {field.name} is {str(value)[:80]!r}; see adapterhub/data/feedback.py")
    kind, right = record["kind"], record["right"]
    if kind not in _ANSWERS:
        raise DataError(f"{where}: kind is {kind!r}; expected one of {', '.join(_ANSWERS)}")
    check_answer(kind, right.get(_ANSWERS[kind]), where)
    known: dict[str, Any] = {field.name: record.get(field.name) for field in fields(Feedback)}
    return Feedback(**known)


def check_answer(kind: str, value: Any, where: str) -> None:
    """Raise DataError where `value` is no right answer of that kind: a label, a list of labels, or a text."""
    if kind == "multilabel":
        fine = isinstance(value, list) and all(isinstance(each, str) for each in value)
    else:
        fine = isinstance(value, str)
    if not fine:
        raise DataError(f"{where}: the right {_ANSWERS[kind]} is {str(value)[:80]!r}")
