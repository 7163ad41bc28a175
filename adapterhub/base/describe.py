"""What a folder says of the base in it, read from its files without loading it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from adapterhub.errors import BaseError

from .architecture import read_config, spelled_alike
from .record import Base
from .tensors import StoredTensor, stored_tensors

# Families that read the text in both directions; every other family is taken for a decoder.
_ENCODERS = """
    albert bert bert-generation camembert convbert deberta deberta-v2 distilbert electra ernie esm eurobert flaubert
    funnel ibert layoutlm longformer mobilebert modernbert mpnet mra nezha nomic_bert nystromformer rembert roberta
    roberta-prelayernorm roformer squeezebert xlm xlm-roberta xlm-roberta-xl xmod yoso
"""
ENCODERS = frozenset(_ENCODERS.split())
# Encoders whose classification heads are served, by where these read: through the base's own pooler, or the first
# token's state. Heads of other families have layers and activations of their own, which would be skipped silently.
Pooling = Literal["last", "pooler", "cls"]
_CLASSIFIERS: Mapping[str, Pooling] = {"bert": "pooler", "roberta": "cls", "xlm-roberta": "cls", "camembert": "cls"}
# RoBERTa counts positions from the one after its padding id, so its table is longer than its context.
_OFFSET_POSITIONS = frozenset(
    {"roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "mpnet", "roberta-prelayernorm"}
)
_LICENCE = re.compile(r"^license:\s*[\"']?([A-Za-z0-9.+-]+)[\"']?\s*$", re.MULTILINE)


def describe(
    folder: Path,
    *,
    name: str,
    public_id: str,
    fingerprint: str,
    licence: str | None = None,
    derived: str | None = None,
    revision: str | None = None,
) -> Base:
    """Return the `Base` in `folder`. Raises BaseError where it is none that can be used."""
    config = read_config(folder)
    _refuse(folder, config)
    weights = [tensor for tensor in stored_tensors(folder) if tensor.is_float]
    model_type = str(config["model_type"])
    return Base(
        name=name,
        public_id=public_id,
        path=folder,
        fingerprint=fingerprint,
        architecture=_architecture(config),
        model_type=model_type,
        parameters=sum(tensor.elements for tensor in weights),
        dtype=_common_dtype(weights),
        bytes=sum(tensor.end - tensor.start for tensor in weights),
        context_length=_context_length(folder, config),
        licence=licence or _licence(folder),
        derived_from=derived,
        is_encoder=model_type in ENCODERS and not config.get("is_decoder"),
        revision=revision,
    )


def classifier_pooling(model_type: str, *, is_decoder: bool = False) -> Pooling:
    """Say where a classifier of this family reads a text's vector. Raises BaseError for one that cannot be served."""
    if model_type not in ENCODERS:
        return "last"
    if is_decoder or model_type not in _CLASSIFIERS:
        what = f"{model_type!r} {'used as a decoder' if is_decoder else 'encoders'}"
        raise BaseError(
            f"{what} cannot be used for classification: only the classifiers of {', '.join(_CLASSIFIERS)} encoders "
            "and of decoders are known to answer here as they do in transformers; name such a base"
        )
    return _CLASSIFIERS[model_type]


def hidden_size(base: Base) -> int:
    """Return the width of the base's hidden states, from its configuration alone. Raises BaseError."""
    config = read_config(base.path)
    width = _text_part(config).get("hidden_size", config.get("emb_dim"))  # as XLM and FlauBERT call it
    if not isinstance(width, int) or width < 1:
        raise BaseError(f"{base.path / 'config.json'} says no hidden_size, so the base cannot be loaded; add it")
    return width


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("is_encoder_decoder"):
        raise BaseError(f"{folder} is an encoder-decoder ({config['model_type']!r}); name a decoder or an encoder")
    if config.get("quantization_config"):
        raise BaseError(f"{folder} is quantised; name the base in float32, float16 or bfloat16 that it was made from")


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if named else str(config["model_type"])


def _common_dtype(weights: list[StoredTensor]) -> str:
    elements: Counter[str] = Counter()
    for tensor in weights:
        elements[tensor.dtype_name] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "none"


def _context_length(folder: Path, config: Mapping[str, Any]) -> int:
    said = _text_part(config)
    length = said.get("max_position_embeddings")
    if not isinstance(length, int) or length < 1:
        raise BaseError(f"{folder / 'config.json'} says no max_position_embeddings, so its context is unknown; add it")
    if said.get("model_type") in _OFFSET_POSITIONS:
        length -= int(said.get("pad_token_id") or 1) + 1
    return length


def _text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of the network that reads text, which some keep in a part of its own."""
    nested = config.get("text_config")
    return spelled_alike(nested if isinstance(nested, Mapping) else config)


def _licence(folder: Path) -> str | None:
    """Return the licence that a model card beside the weights names in its header."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = card.read_text("utf-8", errors="replace")[:20_000]
    front = head.split("\n---", 1)[0] if head.startswith("---") else ""
    found = _LICENCE.search(front)
    return found.group(1) if found else None
