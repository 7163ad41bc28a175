"""Where an adapter begins, if not at random: at another adapter, or at the principal components of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from adapterhub.data.task import TaskSpec
from adapterhub.errors import ConfigError
from adapterhub.lora.config import AdapterConfig, read_config
from adapterhub.lora.files import read_tensors
from adapterhub.lora.weights import lora_scaling

from .learner import Learner

_A, _B = ".lora_A.weight", ".lora_B.weight"
# Rounds of power iteration of the randomised decomposition, and columns beyond those that are kept.
_ROUNDS, _SPARE = 4, 8


@torch.no_grad()
def begin_at(learner: Learner, labels: Sequence[str], folder: Path) -> None:
    """Copy the adapter in `folder` into a fresh learner; modules and labels that it does not have stay fresh.

    B is multiplied by the quotient of the scalings, so that the update is the same. Raises ConfigError where nothing
    fits or ranks differ, and what reading an adapter raises.
    """
    config, found = read_config(folder), read_tensors(folder)
    spec = TaskSpec.from_json((folder / "task.json").read_text(encoding="utf-8"))
    own = learner.saved()
    if config.dora != learner.config.dora:
        raise ConfigError(
            f"init: the adapter in {folder} has {'' if config.dora else 'no '}magnitudes (DoRA), this one not"
        )
    copied = 0
    for name, tensor in own.items():
        given = found.get(name)
        if given is None:
            continue
        if "lora_" not in name:
            copied += _copy_head(name, tensor, given, labels, spec.labels)
            continue
        if given.shape != tensor.shape:
            raise ConfigError(
                f"init: {name} is {list(given.shape)} in the adapter to begin at, {list(tensor.shape)} in this recipe; "
                "give this recipe the same lora.rank and targets"
            )
        factor = 1.0
        if name.endswith(_B):
            module, rank = name.removeprefix("base_model.model.").removesuffix(_B), tensor.shape[1]
            factor = _scaling(config, module, rank) / _scaling(learner.config, module, rank)
        tensor.copy_(given * factor)
        copied += 1
    if not copied:
        raise ConfigError(f"init: the adapter in {folder} has no module in common with this recipe")
    learner.refresh()


def _copy_head(name: str, own: Tensor, given: Tensor, labels: Sequence[str], before: Sequence[str]) -> int:
    """Copy the rows of labels that both have; other tensors of a head are copied where they fit."""
    if given.shape[:1] == (len(before),) and own.shape[:1] == (len(labels),) and given.shape[1:] == own.shape[1:]:
        places = {label: i for i, label in enumerate(before)}
        known = [(i, places[label]) for i, label in enumerate(labels) if label in places]
        for i, place in known:
            own[i] = given[place]
        return len(known)
    if given.shape == own.shape:
        own.copy_(given)
        return 1
    return 0


def _scaling(config: AdapterConfig, module: str, rank: int) -> float:
    return lora_scaling(config.alpha_of(module), rank, rslora=config.rslora)


@dataclass(frozen=True)
class Principal:
    """Pairs that begin at the principal components of the frozen weights (PiSSA, Meng et al. 2024), by module.

    What they begin with is taken away from the frozen weights, so that training begins at the base's own function.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]

    def plain(self, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """Return the trained adapter as plain LoRA of twice the rank: [A; A0] and [B, -B0], of the same scaling."""
        found = dict(tensors)
        for name, tensor in tensors.items():
            if name.endswith(_A):
                found[name] = torch.cat([tensor, self.pairs[name.removesuffix(_A)][0].to(tensor)])
            elif name.endswith(_B):
                found[name] = torch.cat([tensor, -self.pairs[name.removesuffix(_B)][1].to(tensor)], dim=1)
        doubled = {name: 2 * rank for name, rank in config.rank_pattern.items()}
        alpha = config.alpha * (math.sqrt(2.0) if config.rslora else 2.0)
        return replace(config, rank=2 * config.rank, alpha=alpha, rank_pattern=doubled), found


def principal_pairs(
    modules: Iterable[str],
    weight_of: Callable[[str], Tensor],
    rank_of: Callable[[str], int],
    scaling_of: Callable[[str], float],
    seed: int,
) -> Principal:
    """Return A0 [rank, in] and B0 [out, rank] of each module with scaling * B0 A0 its weight's best approximation.

    By a randomised decomposition (Halko et al. 2011) whose draws `seed` decides.
    """
    pairs = {}
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(seed)
        for name in modules:
            weight, rank = weight_of(name), rank_of(name)
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            u, s, v = torch.svd_lowrank(wide, q=min(rank + _SPARE, *wide.shape), niter=_ROUNDS)
            root = (s[:rank] / scaling_of(name)).sqrt()
            # A matrix has no more components than rows or columns: a higher rank is filled up with zeros.
            spare = rank - len(root)
            a, b = (functional.pad(each[:, :rank] * root, (0, spare)) for each in (v, u))
            pairs[name] = (a.T.contiguous(), b.contiguous())
    return Principal(pairs)
