"""PEFT folders made elsewhere, with any configuration PEFT knows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.adapters import load_peft, load_plain

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make_stranger(base: Path, out: Path, *, labels: int | None = None, seed: int = 0, **lora: Any) -> Path:
    """Write an adapter folder with random LoRA matrices (B too) and head, as PEFT saves it."""
    vectors = lora.get("task_type") == "FEATURE_EXTRACTION"
    model = load_plain(base, labels, vectors=vectors)
    torch.manual_seed(seed)
    task_type = "CAUSAL_LM" if labels is None else "SEQ_CLS"
    settings = {"task_type": task_type, "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **lora}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**settings))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0.0, 0.3)
        wrapped.save_pretrained(out, save_embedding_layers=False)
    return out


def change_config(folder: Path, **changes: Any) -> Path:
    """Write other values into adapter_config.json."""
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Write other tensors into adapter_model.safetensors."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def peft_logits(base: Path, folder: Path, labels: int | None) -> Tensor:
    """Return what plain PEFT answers with this folder on this base, for a fixed input."""
    return _logits(load_peft(base, folder, labels))


def plain_logits(base: Path) -> Tensor:
    """Return what the bare causal base answers to the same input."""
    return _logits(load_plain(base, None))


def _logits(model: Any) -> Tensor:
    ids = torch.arange(3, 23)[None, :]
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits
