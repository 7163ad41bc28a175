"""What an answer may look like: a JSON schema, one of some texts, or a regular expression."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from adapterhub.errors import InvalidRequest

OutputKind = Literal["json_schema", "choices", "regex", "text"]
# Enough for schemas and lists that people write; a rule is read anew by every process that follows it.
MOST_CHARACTERS, MOST_CHOICES, MOST_DEPTH = 65_536, 1000, 32


@dataclass(frozen=True)
class Output:
    """A rule that every answer keeps; make one by `json`, `choices`, `regex` or `text`.

    `rule` is the JSON text of a schema or of a list of texts, or the regular expression. The order of a schema's
    properties counts, for an answer has them in that order. "text" has no rule: it says that a task's own is not meant.
    """

    kind: OutputKind
    rule: str = ""

    @classmethod
    def json(cls, schema: Mapping[str, Any]) -> Output:
        """Ask for one JSON value that keeps a schema. Raises InvalidRequest for what is no JSON or too large."""
        if not isinstance(schema, Mapping):
            raise _wrong(f"a JSON schema is an object; got {_short(schema)}")
        return cls._sized("json_schema", _dump(schema, "the JSON schema"))

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Output:
        """Ask for one of some texts, as it stands. Raises InvalidRequest where they are none, too many or not texts."""
        if (
            isinstance(texts, str)
            or not isinstance(texts, Sequence)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise _wrong(f"choices are a list of texts; got {_short(texts)}")
        if not 1 <= len(texts) <= MOST_CHOICES:
            raise _wrong(f"there are {len(texts)} choices; give 1 to {MOST_CHOICES}")
        if not all(texts):
            raise _wrong(f"choice {list(texts).index('') + 1} is empty; an answer has at least one character")
        return cls._sized("choices", _dump(list(dict.fromkeys(texts)), "the list of choices"))

    @classmethod
    def regex(cls, pattern: str) -> Output:
        """Ask for a text that a regular expression matches as a whole (Rust's syntax; no look-around, no references).

        Raises InvalidRequest where it is empty or too large.
        """
        if not isinstance(pattern, str) or not pattern:
            raise _wrong(f"a regular expression is a text that is not empty; got {_short(pattern)}")
        _check_whole(pattern, "the regular expression")
        return cls._sized("regex", pattern)

    @classmethod
    def text(cls) -> Output:
        """Ask for any text, also of a task that has a rule of its own."""
        return cls("text")

    @property
    def free(self) -> bool:
        """Whether any text will do."""
        return self.kind == "text"

    def to_record(self) -> dict[str, str]:
        """Return what task.json holds: the kind and its rule, which stays a text for its order to stay."""
        return {self.kind: self.rule}

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> Output:
        """Read what `to_record` gave; raises InvalidRequest, ValueError or TypeError for anything else."""
        ((kind, rule),) = dict(record).items()
        if kind not in get_args(OutputKind) or kind == "text" or not isinstance(rule, str):
            raise _wrong(f"unknown rule {_short(kind)}; expected json_schema, choices or regex")
        if kind == "regex":
            return cls.regex(rule)
        found = cls.json(json.loads(rule)) if kind == "json_schema" else cls.choices(json.loads(rule))
        return cls(found.kind, rule)  # to the letter, since a digest is over it

    @classmethod
    def _sized(cls, kind: OutputKind, rule: str) -> Output:
        if len(rule) > MOST_CHARACTERS:
            raise _wrong(f"the rule for the output has {len(rule)} characters; at most {MOST_CHARACTERS} are accepted")
        return cls(kind, rule)


def _dump(value: Any, what: str) -> str:
    if is_deep(value):
        raise _wrong(f"{what} is nested more than {MOST_DEPTH} deep")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise _wrong(f"{what} cannot be written as JSON: {error}") from error
    _check_whole(text, what)
    return text


def is_deep(value: Any) -> bool:
    """Return whether lists and objects are nested more than MOST_DEPTH deep; follows no deeper, however deep it is."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        inner = [item for item in level if isinstance(item, Mapping | list | tuple)]
        level = [each for item in inner for each in (item.values() if isinstance(item, Mapping) else item)]
    return bool(level)


def _check_whole(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(f"{what} holds half of a character, U+{ord(text[error.start]):04X}; send whole Unicode") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="output")
