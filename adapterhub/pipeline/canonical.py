"""A PEFT adapter made elsewhere, put into this program's form: the same answers, written the one way we write them.

PEFT's configuration says the same thing in many ways (lists, patterns, "all-linear"). The stored tensors say which
modules are adapted and with which rank; the configuration is checked against them and then written anew from them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base
from adapterhub.data.task import TaskSpec
from adapterhub.errors import CorruptAdapter

from .adopted_spec import adopted_kind, adopted_labels, adopted_spec
from .fit import adapted_modules, check_head_names, check_shapes, count_classes, make_skeleton, root_of
from .peft_record import check_named, check_patterns, patterned, read_record

if TYPE_CHECKING:
    from torch import Tensor

    from adapterhub.lora.config import AdapterConfig
    from adapterhub.lora.weights import LoraWeights

# PEFT reads a layer's index from the first numbered part of a name.
_IN_LAYER = re.compile(r"^.*?\.[^.]*\.(?P<index>\d+)\.(?P<rest>.+)$")
# Which modules an exclusion leaves is in the tensors, and `check_named` asks PEFT itself; labels are names only.
_READ_HERE = ("exclude_modules", "id2label", "label2id")


@dataclass(frozen=True)
class Canonical:
    """An adapter ready to be written: its configuration, its tensors under PEFT names, its rules."""

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    spec: TaskSpec


def canonical(folder: Path, base: Base, labels: Sequence[str] | None, pad_token: str | None) -> Canonical:
    """Read the PEFT adapter in `folder` for `base`; everything that cannot be served exactly is refused.

    `labels` names the classes in the order of the logits; None takes them from the configurations, else `label_0`….
    Raises AdapterError (a variant that is not plain LoRA), CorruptAdapter, UnsafeAdapter, FileMissing, BaseError, and
    UsageError for labels that do not fit.
    """
    from adapterhub.lora.config import parse_config
    from adapterhub.lora.files import parse_weights, read_tensors
    from adapterhub.lora.weights import check_effect

    record = read_record(folder)
    check_patterns(record)
    config = parse_config({key: value for key, value in record.items() if key not in _READ_HERE})
    tensors = read_tensors(folder)
    weights = parse_weights(config, tensors)
    check_effect(weights)
    classes = count_classes(weights)
    vectors = config.task_type == "FEATURE_EXTRACTION"
    if (config.task_type == "SEQ_CLS") != (classes is not None):
        raise CorruptAdapter(
            f"{folder} is a {config.task_type} adapter but its tensors hold {'a' if classes else 'no'} classification "
            "head; save the head with it (modules_to_save), or mend task_type"
        )
    skeleton = make_skeleton(base, classes, vectors=vectors)
    modules = adapted_modules(tensors)
    check_shapes(weights, modules, skeleton, base)
    check_named(record, modules)
    names = adopted_labels(folder, record, base, classes, labels)
    spec = adopted_spec(base, skeleton, names, adopted_kind(folder, classes, vectors=vectors), pad_token)
    check_head_names(weights, spec)
    return Canonical(_rewritten(config, record, weights, modules, skeleton, base), tensors, spec)


def _rewritten(
    config: AdapterConfig,
    record: Mapping[str, Any],
    weights: LoraWeights,
    modules: Sequence[str],
    skeleton: Any,
    base: Base,
) -> AdapterConfig:
    from adapterhub.lora.config import AdapterConfig

    root = root_of(skeleton)
    heads = tuple(sorted({name.split(".")[0] for name in weights.head}))
    ranks = {name: patterned(record.get("rank_pattern"), name, record["r"]) for name in modules}
    for name, rank in ranks.items():
        found = weights.modules[name.removeprefix(root)].rank
        if found != rank:
            raise CorruptAdapter(f"module {name!r} has rank {found}, but adapter_config.json says {rank!r}")
    alphas = {name: float(patterned(record.get("alpha_pattern"), name, record["lora_alpha"])) for name in modules}
    # Patterns are matched from the end of a name, so they hold with and without the backbone's own name before them.
    rank, rank_pattern = _common({name.removeprefix(root): value for name, value in ranks.items()}, config.rank)
    alpha, alpha_pattern = _common({name.removeprefix(root): value for name, value in alphas.items()}, config.alpha)
    targets, layers = _targets(modules, skeleton, heads)
    transposed = any(type(skeleton.get_submodule(name)).__name__ == "Conv1D" for name in modules)
    return AdapterConfig(
        base_model=base.public_id,
        task_type=config.task_type,
        rank=int(rank),
        alpha=alpha,
        targets=targets,
        layers=layers,
        rslora=config.rslora,
        dropout=config.dropout,
        modules_to_save=heads,
        fan_in_fan_out=transposed,
        rank_pattern={name: int(value) for name, value in rank_pattern.items()},
        alpha_pattern=alpha_pattern,
        dora=config.dora,
    )


def _common(values: Mapping[str, float], default: float) -> tuple[float, dict[str, float]]:
    """Return the most frequent value, and those that differ from it."""
    if not values:
        return default, {}
    counts = Counter(values.values())
    most = max(counts, key=lambda value: (counts[value], value))
    return most, {name: value for name, value in values.items() if value != most}


def _targets(
    modules: Sequence[str], skeleton: Any, heads: Sequence[str]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Return the shortest target names, and all their layers, by which PEFT finds exactly `modules`.

    The layers are None where something outside of numbered layers is adapted: PEFT would then leave that out.
    """
    from adapterhub.lora.linear import linear_shapes

    everything = [name for name in linear_shapes(skeleton) if name.split(".")[0] not in heads]
    matches = [match for match in map(_IN_LAYER.match, modules) if match]
    layers: tuple[int, ...] | None = None
    if modules and len(matches) == len(modules):
        layers = tuple(sorted({int(match["index"]) for match in matches}))
        rests = {match["rest"] for match in matches}
        for names in ({rest.rsplit(".", 1)[-1] for rest in rests}, rests):
            if _selected(everything, names, layers) == set(modules):
                return tuple(sorted(names)), layers
    # No product of names and layers: every module by its own name.
    root = root_of(skeleton)
    return tuple(name.removeprefix(root) for name in modules), layers


def _selected(everything: Sequence[str], names: set[str], layers: tuple[int, ...]) -> set[str]:
    inside = [each for each in everything if (match := _IN_LAYER.match(each)) and int(match["index"]) in layers]
    return {each for each in inside if any(each.endswith(f".{name}") for name in names)}
