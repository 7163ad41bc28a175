"""Tiny random bases and a byte-level tokenizer, so that fast tests need no weights from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

SPECIALS = ["<|pad|>", "<|start|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
FAMILIES = ("llama", "mistral", "qwen2", "gpt2", "bert")
ENCODERS = ("bert", "roberta")
# Rotary embeddings that are scaled by frequency, as Llama 3 has them.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte: 3 specials, then 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(SPECIALS + alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=SPECIALS[0], bos_token=SPECIALS[1], eos_token=SPECIALS[2]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(family: str, **changes: Any) -> Any:
    """Return a config of about 50k parameters with grouped-query attention where the family has it."""
    vocab = 256 + len(SPECIALS)
    common = {"vocab_size": vocab, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    decoder = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    if family == "llama":
        return LlamaConfig(**common, **{**decoder, **changes})
    if family == "mistral":
        return MistralConfig(**common, **{**decoder, "sliding_window": 16, **changes})
    if family == "qwen2":
        return Qwen2Config(**common, **{**decoder, **changes})
    if family == "gpt2":
        shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
        drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(**common, **{**shape, **drop, **changes})
    if family in ENCODERS:
        shape = {**decoder, "type_vocab_size": 2}
        shape.pop("num_key_value_heads")
        drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        kind = BertConfig if family == "bert" else RobertaConfig
        return kind(**{**common, **shape, **drop, **changes})
    raise ValueError(f"no tiny {family!r}")


def make_tiny_base(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """Write a random tiny base with its tokenizer to `folder` (safetensors) and return the folder."""
    torch.manual_seed(seed)
    config = tiny_config(family, **changes)
    model = AutoModel.from_config(config) if family in ENCODERS else AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Default initialisation is so small that every input gives nearly the same logits.
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, 0.5 if "emb" in name or "wte" in name or "wpe" in name else 0.15)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
