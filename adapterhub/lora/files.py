"""An adapter folder in and out: `adapter_config.json` and `adapter_model.safetensors`, never pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from adapterhub.errors import CorruptAdapter, FileMissing, UnsafeAdapter

from .config import AdapterConfig, read_config
from .weights import LoraPair, LoraWeights, check_finite, lora_scaling

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# A backbone sits in its model under one attribute ("model", "bert", "transformer"): the first part after PREFIX.
_LORA_KEY = re.compile(r"^base_model\.model\.(?P<root>[^.]+)\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_HEAD_KEY = re.compile(r"^base_model\.model\.(?P<name>(?:score|classifier|pre_classifier)(?:\.[A-Za-z_]+)+)$")


def write_adapter(folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write both files into `folder`; `tensors` carry PEFT's saved key names. Equal input gives equal bytes."""
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(config.to_json(), encoding="utf-8", newline="\n")
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the stored tensors under their PEFT names; raises FileMissing, UnsafeAdapter, CorruptAdapter."""
    path = folder / WEIGHTS
    if path.is_symlink() or folder.is_symlink():
        raise UnsafeAdapter(f"{path} is a symbolic link; adapters must be plain files in a plain folder")
    if not path.is_file():
        pickled = [p.name for p in folder.glob("adapter_model.*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]
        if pickled:
            raise UnsafeAdapter(
                f"{folder} holds {pickled[0]} (pickle, which can run code) and no {WEIGHTS}; "
                "save it with safe_serialization=True where it was made"
            )
        raise FileMissing(f"{folder} has no {WEIGHTS}")
    try:
        # Read whole, not mapped: a mapped file that is later changed or truncated would change a running adapter, or
        # kill the process with SIGBUS.
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise CorruptAdapter(f"{path} is not a safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CorruptAdapter(f"tensor {name!r} in {path} has dtype {tensor.dtype}; expected floating point")
        check_finite(name, tensor)
    return tensors


def read_adapter(folder: Path, *, dtype: torch.dtype = torch.float32) -> LoraWeights:
    """Read an adapter folder; pairs come in `dtype`, the head in float32 or wider.

    Raises FileMissing, UnsafeAdapter (pickle, links) or CorruptAdapter (keys, shapes, non-finite values).
    """
    config = read_config(folder)
    return parse_weights(config, read_tensors(folder)).to(dtype)


def parse_weights(config: AdapterConfig, tensors: Mapping[str, Tensor]) -> LoraWeights:
    """Group tensors under PEFT names into pairs and head; raises CorruptAdapter for keys or shapes that do not fit."""
    halves: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _LORA_KEY.match(name):
            halves.setdefault(match["module"], {})[match["side"]] = tensor
        elif match := _HEAD_KEY.match(name):
            head[match["name"]] = tensor
        else:
            raise CorruptAdapter(f"tensor {name!r} is neither a LoRA matrix nor a classification head")
    modules = {module: _pair(config, module, sides) for module, sides in sorted(halves.items())}
    if not modules and not head:
        raise CorruptAdapter(f"{WEIGHTS} holds no tensors")
    if head and config.task_type == "CAUSAL_LM":
        raise CorruptAdapter(f"a CAUSAL_LM adapter cannot carry a head, but this one has {min(head)!r}")
    return LoraWeights(modules, head)


def _pair(config: AdapterConfig, module: str, sides: Mapping[str, Tensor]) -> LoraPair:
    if set(sides) != {"A", "B"}:
        raise CorruptAdapter(f"module {module!r} has only lora_{next(iter(sides))}; both lora_A and lora_B are needed")
    a, b = sides["A"], sides["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise CorruptAdapter(
            f"module {module!r}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not fit; "
            "expected [rank, in] and [out, rank]"
        )
    rank = int(a.shape[0])
    return LoraPair(a, b, lora_scaling(config.alpha_of(module), rank, rslora=config.rslora))
