"""An adapter folder in and out: `adapter_config.json` and `adapter_model.safetensors`, never pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapterhub.errors import CorruptAdapter, FileMissing, UnsafeAdapter

from .config import AdapterConfig, read_config
from .stored import StoredTensors
from .weights import LoraPair, LoraWeights, check_finite, lora_scaling

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# A backbone sits in its model under one attribute ("model", "bert", "transformer"): the first part after PREFIX. The
# model of a FEATURE_EXTRACTION adapter is the backbone itself, and there is no such part.
_LORA = r"(?P<module>.+)\.lora_(?P<side>A\.weight|B\.weight|magnitude_vector)"
_LORA_KEY = re.compile(rf"base_model\.model\.[^.]+\.{_LORA}")
_BARE_LORA_KEY = re.compile(rf"base_model\.model\.{_LORA}")
_A, _B, _MAGNITUDE = "A.weight", "B.weight", "magnitude_vector"
_HEAD_KEY = re.compile(r"base_model\.model\.(?P<name>(?:score|classifier|pre_classifier)(?:\.[A-Za-z_]+)+)")


def write_adapter(folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write both files into `folder`; `tensors` carry PEFT's saved key names. Equal input gives equal bytes."""
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(config.to_json(), encoding="utf-8", newline="\n")
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})


def open_weights(folder: Path) -> StoredTensors:
    """Read the file of weights in `folder` whole; raises FileMissing, UnsafeAdapter, CorruptAdapter."""
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
    return StoredTensors.read(path)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the stored tensors under their PEFT names; raises FileMissing, UnsafeAdapter, CorruptAdapter."""
    return open_weights(folder).tensors()


def read_adapter(folder: Path, *, dtype: torch.dtype = torch.float32) -> LoraWeights:
    """Read an adapter folder; pairs come in `dtype`, the head in float32 or wider.

    Raises FileMissing, UnsafeAdapter (pickle, links) or CorruptAdapter (keys, shapes, non-finite values).
    """
    config = read_config(folder)
    return build_weights(config, open_weights(folder), dtype)


def build_weights(config: AdapterConfig, stored: StoredTensors, dtype: torch.dtype) -> LoraWeights:
    """Return the weights that a file holds: pairs in `dtype`, magnitudes and head in float32 or wider.

    Raises CorruptAdapter.
    """
    exact = {name for name in stored.names if _HEAD_KEY.fullmatch(name) or name.endswith(_MAGNITUDE)}
    wide = torch.promote_types(dtype, torch.float32)
    rest = set(stored.names) - exact
    return parse_weights(config, {**stored.tensors(dtype, rest), **stored.tensors(wide, exact)})


def parse_weights(config: AdapterConfig, tensors: Mapping[str, Tensor]) -> LoraWeights:
    """Group tensors under PEFT names into pairs and head; raises CorruptAdapter for keys or shapes that do not fit."""
    lora_key = _BARE_LORA_KEY if config.task_type == "FEATURE_EXTRACTION" else _LORA_KEY
    halves: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := lora_key.fullmatch(name):
            place, side = halves.setdefault(match["module"], {}), match["side"]
        elif match := _HEAD_KEY.fullmatch(name):
            place, side = head, match["name"]
        else:
            raise CorruptAdapter(f"tensor {name!r} is neither a LoRA matrix nor a classification head")
        if side in place:  # roots differ; PEFT would take the one its model has
            raise CorruptAdapter(f"tensor {name!r} stands for a place that another tensor has already")
        place[side] = tensor
    modules = {module: _pair(config, module, sides) for module, sides in sorted(halves.items())}
    if not modules and not head:
        raise CorruptAdapter(f"{WEIGHTS} holds no tensors")
    if head and config.task_type != "SEQ_CLS":
        raise CorruptAdapter(f"a {config.task_type} adapter cannot carry a head, but this one has {min(head)!r}")
    return LoraWeights(modules, head)


def _pair(config: AdapterConfig, module: str, sides: Mapping[str, Tensor]) -> LoraPair:
    if not {_A, _B} <= set(sides):
        raise CorruptAdapter(f"module {module!r} has only lora_{min(sides)}; both lora_A and lora_B are needed")
    a, b, magnitude = sides[_A], sides[_B], sides.get(_MAGNITUDE)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise CorruptAdapter(
            f"module {module!r}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not fit; "
            "expected [rank, in] and [out, rank]"
        )
    if (magnitude is not None) != config.dora:
        raise CorruptAdapter(
            f"module {module!r} has {'a' if magnitude is not None else 'no'} lora_magnitude_vector, but "
            f"adapter_config.json says use_dora = {config.dora}"
        )
    if magnitude is not None and magnitude.shape != b.shape[:1]:
        raise CorruptAdapter(f"module {module!r}: lora_magnitude_vector {tuple(magnitude.shape)} is not {b.shape[:1]}")
    rank = int(a.shape[0])
    return LoraPair(a, b, lora_scaling(config.alpha_of(module), rank, rslora=config.rslora), magnitude)
