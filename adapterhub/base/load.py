"""A base loaded: tokenizer, backbone, classifier, and the dtype to compute in.

Nothing is fetched and no code of a base is run: files are local, weights are safetensors, remote code is refused.
transformers' models are imported where they are loaded: that takes seconds, and most questions need none (`stored.py`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from adapterhub.errors import BaseError, ConfigError

from .describe import Pooling, classifier_pooling
from .llama import LlamaWeights
from .record import Base
from .stored import stored_weights

log = logging.getLogger(__name__)

# What a classifier draws anew: all else must come from the stored weights, or it would be random in each process.
_HEADS = ("score.", "classifier.")
_SAFE = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(base: Base, pad_token: str | None = None, *, require_pad: bool = True) -> Any:
    """Return the base's own tokenizer, its vocabulary as stored; `pad_token` names the token to pad with.

    Raises BaseError where the base has no pad token and none is named, or the named one is not in the vocabulary.
    Serving packs rows instead of padding them, so it needs none (`require_pad` False).
    """
    # AutoTokenizer picks a class by the model's family, and some classes put their own rules in place of those in
    # tokenizer.json, or add tokens. The stored ones count: the base was trained with them, the fingerprint covers them.
    kind: Any = PreTrainedTokenizerFast
    if not (base.path / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        kind = AutoTokenizer
    with _quiet(), _as_base_error(base, "tokenizer"):
        tokenizer = kind.from_pretrained(base.path, **_SAFE)
    # Lengths are checked by the task's rules, with an error; the library's remark would only be printed besides.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise BaseError(f"pad_token {pad_token!r} is not in the vocabulary of {base.name!r}; name a token that is")
        tokenizer.pad_token = pad_token
    if require_pad and tokenizer.pad_token_id is None:
        close = f", for instance pad_token: {tokenizer.eos_token!r}" if tokenizer.eos_token else ""
        raise BaseError(
            f"base {base.name!r} has no pad token; name one of its tokens as pad_token in the recipe{close}"
        )
    return tokenizer


def end_tokens(base: Base) -> frozenset[int]:
    """Return the ids that end an answer by the base's generation config, or without one by its config.

    Raises BaseError where that is not JSON.
    """
    file = base.path / "generation_config.json"
    if not file.is_file():
        file = base.path / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
        named = config.get("eos_token_id")
        return frozenset(int(token) for token in (named if isinstance(named, list) else [named]) if token is not None)
    except (ValueError, TypeError, AttributeError) as error:
        raise BaseError(f"{file} does not say what ends an answer: {error}; fetch the base again") from error


def load_network(base: Base, dtype: torch.dtype, device: str | torch.device = "cpu") -> LlamaWeights | Any:
    """Return the weights of a base of the Llama family from its files, or else what `load_backbone` returns."""
    try:
        return stored_weights(base, dtype, device)
    except ValueError as reason:
        log.info("transformers loads %s: %s", base.name, reason)
    return load_backbone(base, dtype, device)


def load_backbone(base: Base, dtype: torch.dtype, device: str | torch.device = "cpu", attention: str = "sdpa") -> Any:
    """Return the frozen network in eval mode: with language-model head for decoders, without any head for encoders.

    An encoder whose stored weights hold no pooler comes without one. Raises BaseError.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModel if base.is_encoder else AutoModelForCausalLM
    model, missing = _load(kind, base, dtype, attention, {})
    if base.is_encoder and missing and all(name.startswith("pooler.") for name in missing):
        model.pooler = None  # random otherwise
    elif missing:
        raise BaseError(_lacks(base, missing))
    model.requires_grad_(False)
    return model.to(device).eval()


def load_classifier(
    base: Base,
    num_labels: int,
    multilabel: bool,
    dtype: torch.dtype,
    attention: str = "sdpa",
    pad_token_id: int | None = None,
) -> Any:
    """Return `AutoModelForSequenceClassification` on the base, in eval mode, its head drawn from torch's generator.

    The head is `score` or `classifier`; seed with `torch.manual_seed` before. Raises BaseError for an encoder whose
    classifiers are not served, and where the stored weights lack anything but that head, since it would be random and
    saved with no adapter.
    """
    from transformers import AutoModelForSequenceClassification

    classifier_pooling(base.model_type, is_decoder=not base.is_encoder)
    changes = {
        "num_labels": num_labels,
        "problem_type": "multi_label_classification" if multilabel else "single_label_classification",
        "pad_token_id": pad_token_id,
    }
    if pad_token_id is None:
        del changes["pad_token_id"]
    model, missing = _load(AutoModelForSequenceClassification, base, dtype, attention, changes)
    if lacking := {name for name in missing if not name.startswith(_HEADS)}:
        raise BaseError(_lacks(base, lacking))
    return model.eval()


def compute_dtype(precision: str, device: str | torch.device = "cpu") -> torch.dtype:
    """Return the dtype to compute in: `precision` is "float32", "bfloat16" or "auto". Raises ConfigError.

    "auto" takes bfloat16 where it is faster: on GPUs that have it, and on CPUs with AMX. Measured on a CPU with
    avx512_bf16 but no AMX: bfloat16 products of 128 rows and more run at 0.55 to 0.65 of the speed of float32.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        raise ConfigError(f"precision {precision!r} is not known; choose auto, float32 or bfloat16")
    kind = torch.device(device).type
    fast = torch.cuda.is_bf16_supported() if kind == "cuda" else kind == "cpu" and _cpu_has_amx()
    return torch.bfloat16 if fast else torch.float32


def pooling_of(model: Any) -> Pooling:
    """Say where a classifier on this model reads a text's vector: last real token, the base's pooler, or first token.

    Raises BaseError for an encoder whose classifiers are not served, or one that lacks the pooler its classifier needs.
    """
    pooling = classifier_pooling(model.config.model_type, is_decoder=bool(getattr(model.config, "is_decoder", False)))
    backbone = getattr(model, model.base_model_prefix, model)
    if pooling == "pooler" and getattr(backbone, "pooler", None) is None:
        raise BaseError(
            f"this {model.config.model_type!r} base was stored without its pooler, which classification reads from; "
            "name one that has it"
        )
    return pooling


def _load(kind: Any, base: Base, dtype: torch.dtype, attention: str, changes: dict[str, Any]) -> tuple[Any, set[str]]:
    """Return the model and the names of the weights that the files lack."""
    with _quiet(), _as_base_error(base, "weights"):
        model, info = kind.from_pretrained(
            base.path,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **_SAFE,
            **changes,
        )
    if info["mismatched_keys"]:
        raise BaseError(f"weights of {base.name!r} do not have the shapes its config says: {info['mismatched_keys']}")
    return model, set(info["missing_keys"])


def _lacks(base: Base, missing: set[str]) -> str:
    named = ", ".join(sorted(missing)[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    return f"the stored weights of {base.name!r} lack {named}, which would be random; name a base that is whole"


@contextmanager
def _as_base_error(base: Base, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a foreign library on foreign files: it raises all sorts
        said = " ".join(str(error).split())[:400]
        raise BaseError(f"the {what} of {base.name!r} in {base.path} cannot be loaded: {said}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and remarks off the terminal while it loads; errors are still raised."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _cpu_has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 tiles; read from Linux, False elsewhere."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags.split()
