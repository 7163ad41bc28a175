"""Which modules of a base get LoRA matrices, as names and layer indices that PEFT reads the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from adapterhub.data.task import Kind
from adapterhub.errors import ConfigError
from adapterhub.lora.config import AdapterConfig, TaskType

from .job import TrainingJob

# PEFT reads a layer's index from the first numbered part of a name, so we do too. A backbone by itself may have nothing
# before its layers ("layers.0.mlp.up_proj"), and there PEFT reads none: see `without_layers`.
_IN_LAYER = re.compile(r"^(?:.*?\.)??[^.]*\.(?P<index>\d+)\.(?P<rest>.+)$")


_TASK_TYPES: Mapping[Kind, TaskType] = {
    "classification": "SEQ_CLS",
    "multilabel": "SEQ_CLS",
    "generation": "CAUSAL_LM",
    "embedding": "FEATURE_EXTRACTION",
}


@dataclass(frozen=True)
class Targets:
    """Module-name suffixes, sorted; layer indices, sorted, None for all; whether the weights lie transposed (GPT-2)."""

    names: tuple[str, ...]
    layers: tuple[int, ...] | None
    fan_in_fan_out: bool


@dataclass(frozen=True)
class Modules:
    """The modules of a network: all their names, and of the linear ones whether their weights lie transposed (GPT-2).

    Modules outside the backbone, which are never targets, are left out.
    """

    every: tuple[str, ...]
    linear: Mapping[str, bool]

    @classmethod
    def of(cls, model: nn.Module, heads: Sequence[str] = ()) -> Modules:
        """Read them from a transformers model; `heads` are the names of modules outside the backbone."""
        from transformers.pytorch_utils import Conv1D

        named = [(name, module) for name, module in model.named_modules() if name.split(".")[0] not in heads]
        linear = {name: isinstance(each, Conv1D) for name, each in named if isinstance(each, nn.Linear | Conv1D)}
        return cls(tuple(name for name, _ in named), linear)

    @classmethod
    def all_linear(cls, names: Iterable[str]) -> Modules:
        """Take networks of whose modules only the linear ones could be meant."""
        found = tuple(names)
        return cls(found, dict.fromkeys(found, False))

    def below(self, root: str) -> Modules:
        """Return the same modules as a model calls them whose backbone is `root`, with a dot."""
        return Modules(
            tuple(f"{root}{name}" for name in self.every), {f"{root}{name}": lies for name, lies in self.linear.items()}
        )


def choose_targets(
    modules: Modules, asked: Literal["all-linear"] | Sequence[str], layers: str | Sequence[int]
) -> Targets:
    """Return the targets that `lora.targets` and `lora.layers` of a recipe mean for a network with these modules.

    Raises ConfigError for a name or a layer that the base does not have.
    """
    linear: dict[str, list[bool]] = {}
    indices: set[int] = set()
    for name, transposed in modules.linear.items():
        if match := _IN_LAYER.match(name):
            linear.setdefault(match["rest"], []).append(transposed)
            indices.add(int(match["index"]))
    if not linear:
        raise ConfigError("the base has no numbered layers with linear modules, so LoRA has nothing to adapt")
    wanted = set(linear) if asked == "all-linear" else _matching(asked, linear)
    return Targets(
        names=tuple(sorted({_shortest_suffix(rest, wanted, modules.every) for rest in wanted})),
        layers=choose_layers(layers, len(indices)),
        fan_in_fan_out=any(transposed for rest in wanted for transposed in linear[rest]),
    )


def without_layers(modules: Modules, targets: Targets) -> Targets:
    """Return the same targets of a backbone by itself without layer indices, which PEFT does not find in its names.

    Suffixes stay where they mean all layers; else every module is named whole.
    """
    found = [(name, match) for name in modules.every if (match := _IN_LAYER.match(name))]
    wanted = [
        name
        for name, match in found
        if any(name.endswith(f".{each}") for each in targets.names)
        and (targets.layers is None or int(match["index"]) in targets.layers)
    ]
    every = {int(match["index"]) for _, match in found}
    names = targets.names if targets.layers is None or every == set(targets.layers) else tuple(sorted(wanted))
    return replace(targets, names=names, layers=None)


def _matching(asked: Iterable[str], linear: Iterable[str]) -> set[str]:
    wanted: set[str] = set()
    for name in asked:
        found = {rest for rest in linear if rest == name or rest.endswith(f".{name}")}
        if not found:
            raise ConfigError(
                f"lora.targets: {name!r} is no linear module in the layers of this base; "
                f"it has {', '.join(sorted(linear))} (or write all-linear)"
            )
        wanted |= found
    return wanted


def _shortest_suffix(rest: str, wanted: set[str], every: Sequence[str]) -> str:
    """Return the fewest last parts of `rest` that, as a suffix, name wanted modules only.

    "dense" would also name the pooler of a BERT; "output.dense" does not.
    """
    parts = rest.split(".")
    for start in range(len(parts) - 1, 0, -1):
        suffix = ".".join(parts[start:])
        named = [name for name in every if name == suffix or name.endswith(f".{suffix}")]
        if all((match := _IN_LAYER.match(name)) and match["rest"] in wanted for name in named):
            return suffix
    return rest


def choose_layers(asked: str | Sequence[int], count: int) -> tuple[int, ...]:
    """Return the indices, of `count` layers, that "all", "top-N" or a list mean."""
    if asked == "all":
        return tuple(range(count))
    if isinstance(asked, str):
        top = int(asked.removeprefix("top-"))
        if not 1 <= top <= count:
            raise ConfigError(f"lora.layers: {asked!r}, but this base has {count} layers; ask for top-1 to top-{count}")
        chosen = tuple(range(count - top, count))
    else:
        chosen = tuple(sorted(set(asked)))
        wrong = [index for index in chosen if not 0 <= index < count]
        if wrong or not chosen:
            raise ConfigError(
                f"lora.layers: {list(asked)!r}, but this base has layers 0 to {count - 1}; name one or more of those"
            )
    return chosen


def adapter_config(job: TrainingJob, targets: Targets, heads: Sequence[str]) -> AdapterConfig:
    """Return the LoRA settings of a job's adapter; `heads` are the modules that learn whole."""
    lora = job.recipe.lora
    task_type = _TASK_TYPES[job.spec.kind]
    return AdapterConfig(
        base_model=job.base.public_id,
        task_type=task_type,
        rank=lora.rank,
        alpha=2.0 * lora.rank if lora.alpha is None else lora.alpha,
        targets=targets.names,
        layers=targets.layers,
        rslora=lora.variant == "rslora",
        dora=lora.variant == "dora",
        dropout=lora.dropout,
        modules_to_save=tuple(heads) if task_type == "SEQ_CLS" else (),
        fan_in_fan_out=targets.fan_in_fan_out,
        # In the order of the file that is written, since PEFT takes the first that matches.
        rank_pattern=dict(sorted(lora.rank_pattern.items())),
        alpha_pattern={},
    )


def check_ranks(config: AdapterConfig, modules: Iterable[str]) -> None:
    """Raise ConfigError for a name in `lora.rank_pattern` that gives no module its rank.

    `modules` are those that get matrices, by their names in the model that PEFT loads the adapter on.
    """
    names = list(modules)
    used = {config.rank_name_of(name) for name in names}
    for name in config.rank_pattern:
        if name not in used:
            raise ConfigError(
                f"lora.rank_pattern: {name!r} gives no module its rank; the adapter is on {', '.join(names[:12])}"
                f"{' and so on' if len(names) > 12 else ''}, and of several names that fit one the first counts"
            )
