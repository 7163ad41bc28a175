"""One record of data, whatever file it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import InvalidRequest

if TYPE_CHECKING:
    from adapterhub.recipe import Kind

_TURN = '{"role": "…", "content": "…"}'


@dataclass(frozen=True, slots=True)
class Example:
    """A record: its fields as read, and what was said about it.

    `fields` holds everything but `id`, `weight`, `probs` and `source`. `where` ("train.jsonl:12") serves messages
    only; it is no part of the example's identity.
    """

    id: str
    fields: Mapping[str, Any]
    weight: float = 1.0
    probs: Mapping[str, float] | None = None
    source: str | None = None
    where: str = ""

    @property
    def text(self) -> str:
        """The text to classify, or else the prompt, or else the last user turn; empty where there is none."""
        for name in ("text", "prompt"):
            if name in self.fields:
                return str(self.fields[name])
        turns = [turn["content"] for turn in self.prompt_messages or () if turn["role"] == "user"]
        return turns[-1] if turns else ""

    @property
    def label(self) -> str | None:
        """The gold label of a classification example."""
        return self.fields.get("label")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The gold labels of a multilabel example; an empty tuple says that none applies."""
        labels = self.fields.get("labels")
        return None if labels is None else tuple(labels)

    @property
    def prompt_messages(self) -> tuple[dict[str, str], ...] | None:
        """The messages without a final assistant turn, which is the completion."""
        messages = self.fields.get("messages")
        return None if messages is None else open_turns(messages)

    @property
    def completion(self) -> str | None:
        """The gold completion: the field, or the content of a final assistant message."""
        if "completion" in self.fields:
            return str(self.fields["completion"])
        messages = self.fields.get("messages")
        if messages and messages[-1]["role"] == "assistant":
            return str(messages[-1]["content"])
        return None

    @property
    def completions(self) -> tuple[str, ...]:
        """All gold completions: of a preference the chosen one, then the rejected one; else the one there is."""
        if "chosen" in self.fields and "rejected" in self.fields:
            return str(self.fields["chosen"]), str(self.fields["rejected"])
        return () if self.completion is None else (self.completion,)

    @property
    def positive(self) -> str | None:
        """What an embedding example's text shall lie near."""
        return self.fields.get("positive")

    @property
    def negative(self) -> str | None:
        """What looks like the positive of an embedding example and is none: a hard negative."""
        return self.fields.get("negative")


# Which fields are the answer, by kind; to another kind a field of that name is one like any other.
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "classification": ("label",),
    "multilabel": ("labels",),
    "generation": ("completion",),
    "preference": ("completion", "chosen", "rejected"),
    "embedding": ("positive", "negative"),
}


def asked_of(example: Example, kind: str) -> dict[str, Any]:
    """Return the fields of an example of a kind without its gold answer: of messages those before the last turn."""
    fields = {name: value for name, value in example.fields.items() if name not in ANSWERS[kind]}
    if (messages := example.prompt_messages) is not None:
        fields["messages"] = list(messages)
    return fields


def open_turns(messages: Any) -> tuple[dict[str, str], ...]:
    """Return role and content of `messages` up to the turn to be written: a final assistant turn is left out.

    Raises InvalidRequest for anything but a list of objects with role and content, both text.
    """
    if not isinstance(messages, (list, tuple)):
        raise InvalidRequest(f"messages is {messages!r:.80}; expected a list of {_TURN}", param="messages")
    turns = [_turn(index, turn) for index, turn in enumerate(messages)]
    return tuple(turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns)


def _turn(index: int, turn: Any) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise InvalidRequest(f"messages[{index}] is {turn!r:.80}; expected {_TURN}", param="messages")
    for name in ("role", "content"):
        if not isinstance(turn.get(name), str):
            raise InvalidRequest(
                f"messages[{index}] has {name} {turn.get(name)!r:.80}; expected {_TURN}, both text", param="messages"
            )
    return {"role": turn["role"], "content": turn["content"]}


def content_id(fields: Mapping[str, Any]) -> str:
    """Return 16 hex digits of the sha256 over the canonical JSON of `fields` (sorted keys, no spaces, ASCII)."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def gold_labels(example: Example, kind: Kind) -> tuple[str, ...]:
    """Return the gold labels that count for a kind of task; a field of another kind's name is a field like any."""
    if kind == "multilabel":
        return example.labels or ()
    return (example.label,) if kind == "classification" and example.label is not None else ()


def collect_labels(examples: Iterable[Example], kind: Kind) -> tuple[str, ...]:
    """Return every label that `examples` carry, as gold or in `probs`, sorted and each once."""
    found: set[str] = set()
    for example in examples:
        found.update(gold_labels(example, kind), example.probs or ())
    return tuple(sorted(found))
