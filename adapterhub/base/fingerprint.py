"""The fingerprint: what a base is, from its stored files alone.

Never from a loaded model, whose prefixes, tied weights, dtype and random heads differ by class. It covers the stored
tensors (name, dtype, shape, bytes), the architecture keys of the config, and the tokenizer: vocabulary, merges, added
tokens, and the rules by which text is cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.errors import BaseError

from .architecture import canonical_architecture, read_config
from .tensors import stored_tensors

# What decides which ids a text gets. Truncation and padding are run-time settings; the decoder sees ids already made.
_TOKENIZER_PARTS = ("model", "normalizer", "pre_tokenizer", "post_processor")
# What a tokenizer is stored in where there is no tokenizer.json.
_VOCABULARIES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
)


def fingerprint(folder: Path) -> str:
    """Return "sha256:" and 64 hex digits for the base in `folder`; reads every weight once. Raises BaseError."""
    record = {
        "format": 1,
        "tensors": [[t.name, t.dtype, list(t.shape), t.sha256()] for t in stored_tensors(folder)],
        "architecture": canonical_architecture(read_config(folder)),
        "tokenizer": tokenizer_identity(folder),
    }
    return "sha256:" + _hash(record)


def tokenizer_identity(folder: Path) -> Any:
    """Return JSON that is equal for equal tokenizers. Raises BaseError where the base has none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        hashes = {name: _hash_file(folder / name) for name in _VOCABULARIES if (folder / name).is_file()}
        if not hashes:
            raise BaseError(f"{folder} holds no tokenizer (tokenizer.json); save the base's tokenizer beside it")
        return hashes
    try:
        stored: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
        parts = {name: stored.get(name) for name in _TOKENIZER_PARTS}
        model = dict(parts["model"] or {})
        # Older files write a merge as "a b", newer ones as ["a", "b"].
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or ()]
        added = sorted(stored.get("added_tokens") or (), key=lambda token: token["id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(f"{file} is not a tokenizer: {error!r}; fetch the base again") from error
    # The vocabulary and the merges are hashed apart: they are large, and neutral values inside them are tokens.
    rules = {**parts, "model": {**model, "vocab": None, "merges": None}}
    words = {"vocab": _hash(model.get("vocab")), "merges": _hash(merges)}
    return {"rules": _without_neutral(rules), "added": _without_neutral(added), **words}


def _without_neutral(value: Any) -> Any:
    """Leave out what is null, false or empty text: versions of the library write or omit it at will."""
    if isinstance(value, Mapping):
        cleaned = {key: _without_neutral(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None and item is not False and item != ""}
    if isinstance(value, list):
        return [_without_neutral(item) for item in value]
    return value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _hash_file(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
