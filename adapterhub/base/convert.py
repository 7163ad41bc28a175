"""From a Llama-family GGUF with a byte-level BPE to a folder that `AutoModel.from_pretrained` loads as it is.

transformers can read a GGUF too, but takes half a minute, and what it writes (tokenizer, config keys) changes with its
version, while the fingerprint is pinned; and it cuts text without the digit rule that the original tokenizer has. So
the few steps are taken here: dequantise, rename, undo llama.cpp's reordering of query and key rows, round to bfloat16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from adapterhub.errors import BaseError

_RENAMED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"^(?:blk\.(\d+)\.)?(\w+)\.weight$")
_CONTROL = 3  # token type of GGUF: a token that no text is cut into
# How the text is cut before merging, by the name GGUF gives it; each must be what the original tokenizer.json holds.
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS: Mapping[str, Any] = {
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
}


def convert_gguf(file: Path, folder: Path, *, public_id: str) -> None:
    """Write config, weights (bfloat16) and tokenizer of the GGUF `file` into `folder`. Raises BaseError, OSError."""
    try:
        reader = gguf.GGUFReader(file)
        facts = {name: field.contents() for name, field in reader.fields.items() if field.data}
        config = _config(facts, public_id, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
        tensors = _tensors(reader, config)
        tokenizer = _tokenizer(facts)
    except (ValueError, KeyError, IndexError) as error:
        raise BaseError(f"{file} is not a GGUF that can be converted: {error!r}") from error
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # how the library reports a full or read-only disk
        raise OSError(str(error)) from error
    (folder / "model.safetensors").chmod(0o644)  # the library makes it private, and a cache may be shared
    _write(folder / "config.json", config)
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", _tokenizer_config(facts))
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(folder / "generation_config.json", ids)
    if template := facts.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, "utf-8")


def _config(facts: Mapping[str, Any], public_id: str, *, tied: bool) -> dict[str, Any]:
    if facts["general.architecture"] != "llama":
        raise ValueError(f"architecture {facts['general.architecture']!r}, not 'llama'")
    # initializer_range is not in a GGUF; it only matters for new heads, and transformers has a default for it.
    return {
        "_name_or_path": public_id,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        # GGUF keeps floats in 32 bits, and 9.999999747378752e-06 is what 1e-05 becomes there: the original value is the
        # shortest decimal that rounds to the same 32 bits.
        "rms_norm_eps": _shortest(facts["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": _shortest(facts["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": facts["llama.vocab_size"],
    }


def _shortest(value: float) -> float:
    return float(str(np.float32(value)))


def _tensors(reader: gguf.GGUFReader, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return bfloat16 tensors under transformers' names, shapes [out, in] as GGUF's bytes have them too."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for stored in reader.tensors:
        found = _BLOCK.match(stored.name)
        if found is None or found[2] not in _RENAMED:
            raise ValueError(f"unknown tensor {stored.name!r}")
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        if found[2] in heads:
            values = _unpermute(values, heads[found[2]])
        layer = f"model.layers.{found[1]}." if found[1] else ""
        exact = torch.from_numpy(np.array(values, dtype=np.float32))
        tensors[f"{layer}{_RENAMED[found[2]]}.weight"] = exact.to(torch.bfloat16)
    return tensors


def _unpermute(values: Any, heads: int) -> Any:
    """Undo llama.cpp's order of rows: rope pairs i with i + 1 there, with i + head_dim / 2 in transformers."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer.json that the GGUF's vocabulary and merges came from."""
    kind, cut = facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]
    if kind != "gpt2" or cut not in _PRE_TOKENIZERS:
        raise ValueError(f"tokenizer {kind!r} with pre-tokenizer {cut!r}; known: {sorted(_PRE_TOKENIZERS)}")
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    control = [index for index, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == _CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": tokens[index], **flags} for index in control],
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[cut],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": facts["tokenizer.ggml.merges"],
        },
    }


def _tokenizer_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    return {
        "add_prefix_space": False,
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "model_max_length": facts["llama.context_length"],
        "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
    }


def _write(file: Path, record: Any) -> None:
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
