"""The task rules of an adapter that brought none: what plain PEFT leaves unsaid."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub.base.source import Base
from adapterhub.data.task import Kind, Pooling, PromptSpec, TaskSpec
from adapterhub.errors import UsageError

from .prepare import DEFAULT_MAX_LENGTH


def adopted_spec(base: Base, skeleton: Any, labels: tuple[str, ...], kind: Kind, pad_token: str | None) -> TaskSpec:
    """Return the rules by which this program asks such an adapter: no template for classes, the base's own for chat.

    `skeleton` is the model the adapter sits on, weights or not. Raises BaseError where the base has no pad token and
    none is named.
    """
    from adapterhub.base.load import load_tokenizer

    template = load_tokenizer(base, pad_token).chat_template
    chat = kind == "generation" and isinstance(template, str)
    return TaskSpec(
        kind=kind,
        base_fingerprint=base.fingerprint,
        max_length=min(base.context_length, DEFAULT_MAX_LENGTH),
        labels=labels,
        prompt=PromptSpec("chat", chat_template=template) if chat else PromptSpec(),
        pooling=_pooling(base, skeleton, kind),
        pad_token=pad_token,
    )


def _pooling(base: Base, skeleton: Any, kind: Kind) -> Pooling | None:
    from adapterhub.base.features import default_pooling
    from adapterhub.base.load import pooling_of

    if kind == "embedding":
        return default_pooling(base)
    return None if kind == "generation" else pooling_of(skeleton)


def adopted_labels(
    folder: Path, record: Mapping[str, Any], base: Base, classes: int | None, given: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the labels: as given, else as a configuration names them, else numbered. Raises UsageError."""
    if classes is None:
        if given:
            raise UsageError("labels were given, but this adapter has no head and so no labels; leave --labels out")
        return ()
    if given is not None:
        if len(set(given)) != len(given) or len(given) != classes or not all(given):
            raise UsageError(
                f"--labels names {list(given)!r}, but the head has {classes} classes; give {classes} names"
            )
        return tuple(given)
    for source in (record, _config(folder), _config(base.path)):
        found = source.get("id2label")
        if isinstance(found, dict) and (names := _meaningful(found, classes)):
            return names
    return tuple(f"label_{index}" for index in range(classes))


def _meaningful(id2label: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Return the names of an id2label if it names each class and not just by number, as transformers does by itself."""
    names = tuple(str(id2label.get(str(index), "")) for index in range(classes))
    generic = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    whole = len(id2label) == classes == len(set(names)) and all(names)
    return names if whole and not generic else ()


def adopted_kind(folder: Path, classes: int | None, *, vectors: bool = False) -> Kind:
    """Say what the adapter does, by its head and by the config.json beside it, where there is one."""
    if classes is None:
        return "embedding" if vectors else "generation"
    return "multilabel" if _config(folder).get("problem_type") == "multi_label_classification" else "classification"


def _config(folder: Path) -> Mapping[str, Any]:
    """Return config.json of a folder, {} where there is none that can be read: it only helps to name things."""
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
