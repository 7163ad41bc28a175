"""`task.json`: what, besides weights, changes the answers of an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.errors import CorruptAdapter

if TYPE_CHECKING:
    from adapterhub import recipe

Kind = Literal["classification", "multilabel", "generation", "embedding"]
KINDS: tuple[Kind, ...] = ("classification", "multilabel", "generation", "embedding")
Pooling = Literal["last", "pooler", "cls", "mean"]


def task_kind(kind: recipe.Kind) -> Kind:
    """Return what a task is served as that was trained as `kind`: preferences teach a generation task."""
    return "generation" if kind == "preference" else kind


def a_task(kind: Kind) -> str:
    """Return a task of this kind as a part of a sentence."""
    return f"{'an' if kind == 'embedding' else 'a'} {kind} task"


@dataclass(frozen=True)
class PromptSpec:
    """How a record's fields become the text a task sees.

    `style` is "plain" (the text as it is) or "chat" (messages through `chat_template`). `template` names fields in
    braces, `{text}`; None means the bare text or prompt.
    """

    style: Literal["plain", "chat"] = "plain"
    system: str | None = None
    template: str | None = None
    chat_template: str | None = None


@dataclass(frozen=True)
class TaskSpec:
    """The rules a task was trained with; the same rules hold when it is served.

    `max_length` counts tokens: of the text, for generation of prompt and completion together.
    `pooling` says which states a head reads: "last" (rightmost non-pad token), "pooler" or "cls" (encoders). For
    embedding it says how a text becomes a vector: "mean", "last" or "cls" (the first token). None for generation.
    `base_fingerprint` is that of the base the adapter was trained on.
    """

    kind: Kind
    base_fingerprint: str
    max_length: int
    labels: tuple[str, ...] = ()
    prompt: PromptSpec = field(default_factory=PromptSpec)
    pooling: Pooling | None = None
    pad_token: str | None = None

    def to_json(self) -> str:
        """Return the canonical text: sorted keys, two spaces, final newline, so equal specs have equal bytes."""
        record = {**asdict(self), "labels": list(self.labels), "format": 1}
        return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        """Read what `to_json` wrote; raises CorruptAdapter where it is anything else."""
        try:
            record: Mapping[str, Any] = json.loads(text)
            if record["format"] != 1:
                raise CorruptAdapter(f"task.json has format {record['format']!r}; this program reads format 1")
            if record["kind"] not in KINDS:
                raise CorruptAdapter(f"task.json has kind {record['kind']!r}; expected one of {', '.join(KINDS)}")
            return cls(
                kind=record["kind"],
                base_fingerprint=str(record["base_fingerprint"]),
                max_length=int(record["max_length"]),
                labels=tuple(record["labels"]),
                prompt=PromptSpec(**record["prompt"]),
                pooling=record["pooling"],
                pad_token=record.get("pad_token"),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptAdapter(f"task.json is not a task description: {error!r}") from error
