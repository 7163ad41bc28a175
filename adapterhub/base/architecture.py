"""The architecture keys of a config, in one spelling, so that equal networks give equal fingerprints.

A config is written differently by different versions of transformers: keys at their default come and go, `rope_theta`
moved into `rope_parameters`, 10000.0 is written 10000. What changes the network's output is kept, how it is spelled
is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.errors import BaseError

# Other names of the same thing (GPT-2, DistilBERT, GPT-NeoX and their like).
_ALIASES = {
    "n_embd": "hidden_size",
    "dim": "hidden_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "num_heads": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "max_sequence_length": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "hidden_dim": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "activation_function": "hidden_act",
    "activation": "hidden_act",
    "hidden_activation": "hidden_act",
    "layer_norm_epsilon": "norm_eps",
    "layer_norm_eps": "norm_eps",
    "rms_norm_eps": "norm_eps",
}

# What shapes the network or its arithmetic; never architectures, dtype, names, versions, dropout or token ids.
_KEYS = """
    model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim hidden_act norm_eps max_position_embeddings type_vocab_size embedding_size position_embedding_type
    tie_word_embeddings attention_bias mlp_bias qkv_bias use_bias bias is_decoder is_encoder_decoder
    sliding_window use_sliding_window max_window_layers layer_types sliding_window_pattern attention_chunk_size
    rotary_pct partial_rotary_factor rope_local_base_freq no_rope_layers no_rope_layer_interval
    global_attn_every_n_layers local_attention global_rope_theta local_rope_theta use_parallel_residual
    parallel_attn alibi scale_attn_weights scale_attn_by_inverse_layer_idx query_pre_attn_scalar
    attn_logit_softcapping final_logit_softcapping logit_scale logits_scaling embedding_multiplier
    residual_multiplier attention_multiplier use_qk_norm clip_qkv num_experts num_local_experts
    num_experts_per_tok moe_intermediate_size decoder_sparse_step norm_topk_prob mlp_only_layers
    shared_expert_intermediate_size n_routed_experts n_shared_experts first_k_dense_replace num_hidden_groups
    inner_group_num relative_attention max_relative_positions pos_att_type position_biased_input share_att_key
    position_buckets relative_attention_num_buckets
"""

_LLAMA_LIKE = {"hidden_act": "silu", "norm_eps": 1e-6, "rope_theta": 10000}
_BERT_LIKE = {"hidden_act": "gelu", "norm_eps": 1e-12, "max_position_embeddings": 512, "tie_word_embeddings": True}
# What a family means where its config says nothing; other families are taken as they are written.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_LLAMA_LIKE, "max_position_embeddings": 2048},
    "mistral": {**_LLAMA_LIKE, "max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
    "qwen2": {**_LLAMA_LIKE, "max_position_embeddings": 32768, "use_sliding_window": False},
    "qwen3": {**_LLAMA_LIKE, "max_position_embeddings": 32768, "use_sliding_window": False, "head_dim": 128},
    "gpt2": {
        "hidden_act": "gelu_new",
        "norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    "bert": {**_BERT_LIKE, "type_vocab_size": 2},
    "roberta": {**_BERT_LIKE, "type_vocab_size": 2},
}


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of the base in `folder`. Raises BaseError where it is missing or not a config."""
    file = folder / "config.json"
    if not file.is_file():
        raise BaseError(f"{folder} holds no config.json, so it is no base; name a folder written by save_pretrained")
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BaseError(f"{file} is not JSON: {error}; fetch the base again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BaseError(f"{file} names no model_type; name a folder written by transformers' save_pretrained")
    return config


def canonical_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of `config` shapes the network, defaults filled in, neutral values left out."""
    found = spelled_alike(config)
    shaping = _KEYS.split()
    kept = {key: _number(value) for key, value in found.items() if key in shaping}
    if rope := rope_parameters(found):
        kept["rope"] = rope
    _drop_derived(kept)
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        kept["text_config"] = canonical_architecture(nested)
    return {key: value for key, value in kept.items() if value is not None and value is not False}


def is_alias(name: str) -> bool:
    """Say whether a key is another family's name of what the Llama family calls otherwise."""
    return name != "rms_norm_eps" and (name in _ALIASES or name == "norm_eps")


def spelled_alike(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` under the usual key names, with the family's defaults where it says nothing."""
    found = dict(_DEFAULTS.get(str(config.get("model_type")), {}))
    given: dict[str, Any] = {}
    for key, value in config.items():
        given[_ALIASES.get(key, key)] = value
    # A null means "not said" for most keys, but "none" for a window.
    found.update({key: value for key, value in given.items() if value is not None or key == "sliding_window"})
    return found


def rope_parameters(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_parameters` of a config spelled alike, also from the older `rope_theta` and `rope_scaling`.

    Without `rope_type` where that is "default"; {} without rope.
    """
    given = found.get("rope_parameters") or found.get("rope_scaling") or {}
    rope = {key: _number(value) for key, value in given.items()} if isinstance(given, Mapping) else {}
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
        del rope["type"]
    if rope.get("rope_type") == "default":
        del rope["rope_type"]
    theta = found.get("rope_theta")
    if theta is not None and not any(isinstance(value, Mapping) for value in rope.values()):
        rope.setdefault("rope_theta", _number(theta))
    return rope


def _drop_derived(kept: dict[str, Any]) -> None:
    """Remove what only repeats other keys."""
    heads = kept.get("num_attention_heads")
    if kept.get("num_key_value_heads") == heads:
        kept.pop("num_key_value_heads", None)
    if heads and kept.get("hidden_size") and kept.get("head_dim") == kept["hidden_size"] // heads:
        kept.pop("head_dim")
    if kept.get("intermediate_size") == 4 * (kept.get("hidden_size") or 0) and kept.get("model_type") == "gpt2":
        kept.pop("intermediate_size")
    if kept.get("position_embedding_type") == "absolute":
        kept.pop("position_embedding_type")
    if kept.pop("use_sliding_window", None) is False:
        kept.pop("sliding_window", None)
    if not kept.get("sliding_window"):
        kept.pop("max_window_layers", None)
    if len(set(kept.get("layer_types") or ())) == 1:
        kept.pop("layer_types")


def _number(value: Any) -> Any:
    """Write 10000.0 as 10000, everywhere inside `value`."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_number(item) for item in value]
    return value
