"""Random adapters made by PEFT itself, so that PEFT is an independent oracle of what they do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "mistral": ["q_proj", "k_proj", "o_proj"],
    "qwen2": ["q_proj", "v_proj", "up_proj"],
    "gpt2": ["attn.c_attn", "mlp.c_proj"],
    "bert": ["query", "value", "attention.output.dense"],
    "roberta": ["query", "key", "intermediate.dense"],
}


def load_plain(base: Path, labels: int | None, dtype: torch.dtype = torch.float32, *, vectors: bool = False) -> Any:
    """Return the plain transformers model: with a classification head of `labels` outputs, causal, or headless."""
    kwargs: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if vectors:
        return AutoModel.from_pretrained(base, **kwargs).eval()
    if labels is None:
        return AutoModelForCausalLM.from_pretrained(base, **kwargs).eval()
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, **kwargs).eval()


def make_adapter(
    base: Path,
    out: Path,
    family: str,
    *,
    labels: int | None = None,
    rank: int = 4,
    seed: int = 0,
    rslora: bool = False,
    dora: bool = False,
    layers: list[int] | None = None,
    targets: list[str] | None = None,
    scale: float = 0.3,
    vectors: bool = False,
) -> Path:
    """Write an adapter folder with random A, B and head, as PEFT saves it."""
    torch.manual_seed(seed)
    model = load_plain(base, labels, vectors=vectors)
    headless = "FEATURE_EXTRACTION" if vectors else "CAUSAL_LM"
    config = LoraConfig(
        task_type=headless if labels is None else "SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=targets or TARGETS[family],
        layers_to_transform=layers,
        fan_in_fan_out=family == "gpt2",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(out, save_embedding_layers=False)
    return out


def load_peft(
    base: Path, folder: Path, labels: int | None, dtype: torch.dtype = torch.float32, *, vectors: bool = False
) -> Any:
    """Return the adapter in plain PEFT on the plain base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_plain(base, labels, dtype, vectors=vectors), folder).eval()
