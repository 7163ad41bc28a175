"""PEFT's own record of an adapter, read with suspicion: what in it must hold before anything is believed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adapterhub.errors import CorruptAdapter, FileMissing


def read_record(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json of `folder` as PEFT wrote it; raises FileMissing, CorruptAdapter."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise FileMissing(f"{folder} has no adapter_config.json; name a folder that PEFT's save_pretrained wrote")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptAdapter(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptAdapter(f"{path} holds {type(record).__name__}, expected an object")
    return record


def check_patterns(record: Mapping[str, Any]) -> None:
    """Raise CorruptAdapter where rank or alpha, or a pattern of them, is not what its readers expect.

    A record of another kind than LoRA passes: it has neither, and is refused by name later.
    """
    if record.get("peft_type") != "LORA":
        return
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = record.get(key) or {}
        try:
            sound = all(re.compile(name) and _is_number(value) for name, value in pattern.items())
        except (re.error, TypeError, AttributeError):
            sound = False
        if not sound:
            raise CorruptAdapter(f"adapter_config.json has {key} = {pattern!r}; expected name patterns with numbers")
    for key in ("r", "lora_alpha"):
        if not _is_number(record.get(key)):
            raise CorruptAdapter(f"adapter_config.json has {key} = {record.get(key)!r}; expected a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_named(record: Mapping[str, Any], modules: Sequence[str]) -> None:
    """Raise CorruptAdapter where PEFT, going by the configuration, would not load a module that has tensors."""
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = record.get("target_modules")
    if not targets and modules:
        raise CorruptAdapter("adapter_config.json names no target_modules; write the adapted modules there")
    view = SimpleNamespace(
        target_modules=targets,
        exclude_modules=record.get("exclude_modules"),
        layers_to_transform=record.get("layers_to_transform"),
        layers_pattern=record.get("layers_pattern"),
        target_parameters=None,
    )
    if targets == "all-linear":
        return
    try:
        missed = [name for name in modules if not check_target_module_exists(view, name)]
    except (re.error, TypeError, AttributeError) as error:
        raise CorruptAdapter(f"target_modules in adapter_config.json is {targets!r}, which is no pattern") from error
    if missed:
        raise CorruptAdapter(
            f"the adapter holds tensors for {missed[0]!r} ({len(missed)} such modules), which target_modules, "
            "exclude_modules and layers_to_transform of its adapter_config.json leave out; mend whichever is wrong"
        )


def patterned(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value PEFT takes for `module`: that of the first pattern that fits, else `default`."""
    from peft.utils.other import get_pattern_key

    given = pattern or {}
    return given.get(get_pattern_key(list(given), module), default)
