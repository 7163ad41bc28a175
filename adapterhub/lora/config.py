"""`adapter_config.json` in canonical form: what PEFT needs, nothing that differs between equal runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adapterhub.errors import AdapterError, CorruptAdapter, FileMissing

TaskType = Literal["SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION"]
TASK_TYPES: tuple[TaskType, ...] = ("SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION")

# What PEFT writes beside the keys below, at the only values under which an adapter is plain LoRA. Keys of a newer PEFT
# that are null or false pass; anything else is a variant we do not know and must not guess.
_NEUTRAL = {
    "bias": ("none",),
    "inference_mode": (True, False),
    "qalora_group_size": (16,),
    # How training started; the weights stored are plain LoRA for these, while PiSSA or OLoRA also change the base.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_DESCRIPTIVE = {
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "auto_mapping",
    "megatron_core",
    "layers_pattern",
    "eva_config",
}
_READ = {
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform",
    "use_rslora", "use_dora", "modules_to_save", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
}  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA settings of one adapter.

    `base_model` is the public id of the base, never a path. `targets` are PEFT module-name suffixes. `layers` are layer
    indices, None for all.
    """

    base_model: str
    task_type: TaskType
    rank: int
    alpha: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    rslora: bool = False
    dropout: float = 0.0
    modules_to_save: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    dora: bool = False

    def alpha_of(self, module: str) -> float:
        """Return alpha for a module name, by PEFT's rule: the first pattern that matches the end of the name."""
        for pattern, alpha in self.alpha_pattern.items():
            if re.match(rf"(?:.*\.)?({pattern})$", module):
                return float(alpha)
        return self.alpha

    def rank_of(self, module: str) -> int:
        """Return the rank for a module name, by the same rule."""
        name = self.rank_name_of(module)
        return self.rank if name is None else int(self.rank_pattern[name])

    def rank_name_of(self, module: str) -> str | None:
        """Return the pattern that decides the rank for a module name, None where that is the adapter's own rank."""
        return next((each for each in self.rank_pattern if re.match(rf"(?:.*\.)?({each})$", module)), None)

    def to_json(self) -> str:
        """Return canonical text: sorted keys and names, no library version, so equal runs give equal bytes."""
        record: dict[str, Any] = {
            "alpha_pattern": {name: _number(alpha) for name, alpha in sorted(self.alpha_pattern.items())},
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": True,
            "layers_to_transform": None if self.layers is None else sorted(self.layers),
            "lora_alpha": _number(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": sorted(self.modules_to_save) or None,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": dict(sorted(self.rank_pattern.items())),
            "target_modules": sorted(self.targets),
            "task_type": self.task_type,
            "use_rslora": self.rslora,
        }
        if self.dora:
            record["use_dora"] = True
        return json.dumps(record, indent=2, sort_keys=True) + "\n"


def parse_config(record: Mapping[str, Any]) -> AdapterConfig:
    """Read PEFT's record; raises AdapterError for what is not plain LoRA, CorruptAdapter for what is not a config."""
    if record.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type is {record.get('peft_type')!r}; only 'LORA' adapters can be used")
    if record.get("task_type") not in TASK_TYPES:
        raise AdapterError(f"task_type is {record.get('task_type')!r}; expected one of {', '.join(TASK_TYPES)}")
    for key in sorted(set(record) - _READ - _DESCRIPTIVE):
        value = record[key]
        if value and value not in _NEUTRAL.get(key, ()):
            raise AdapterError(
                f"adapter_config.json has {key} = {value!r}, a variant that this program cannot serve exactly"
            )
    targets = record.get("target_modules")
    try:
        layers = record.get("layers_to_transform")
        return AdapterConfig(
            base_model=str(record.get("base_model_name_or_path") or ""),
            task_type=record["task_type"],
            rank=int(record["r"]),
            alpha=float(record["lora_alpha"]),
            targets=(targets,) if isinstance(targets, str) else tuple(targets or ()),
            layers=None if layers is None else (layers,) if isinstance(layers, int) else tuple(layers),
            rslora=bool(record.get("use_rslora")),
            dropout=float(record.get("lora_dropout") or 0.0),
            modules_to_save=tuple(record.get("modules_to_save") or ()),
            fan_in_fan_out=bool(record.get("fan_in_fan_out")),
            rank_pattern=dict(record.get("rank_pattern") or {}),
            alpha_pattern=_alphas(record.get("alpha_pattern") or {}),
            dora=bool(record.get("use_dora")),
        )
    except (KeyError, TypeError, ValueError, OverflowError, re.error) as error:
        raise CorruptAdapter(f"adapter_config.json is not a LoRA configuration: {error!r}") from error


def _number(value: float) -> float:
    """Return an integer where the value is one, so that 16 and 16.0 are spelled alike."""
    return int(value) if float(value).is_integer() else value


def _alphas(record: Mapping[str, Any]) -> dict[str, float]:
    for pattern in record:
        re.compile(pattern)
    return {pattern: float(alpha) for pattern, alpha in record.items()}


def read_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json` of a folder; raises FileMissing, CorruptAdapter, AdapterError."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise FileMissing(f"{folder} has no adapter_config.json; is it a PEFT adapter folder?")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptAdapter(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptAdapter(f"{path} holds {type(record).__name__}, expected an object")
    return parse_config(record)
