"""LoRA matrices of one adapter, named relative to the backbone they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.errors import CorruptAdapter


@dataclass(frozen=True)
class LoraPair:
    """The update of one linear layer: `scaling * b @ a`.

    `a` is [rank, in_features], `b` is [out_features, rank]. With a `magnitude` [out_features] the changed weight is
    then scaled row by row to these norms (DoRA, Liu et al. 2024).
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `a`."""
        return int(self.a.shape[0])

    def delta(self) -> Tensor:
        """Return the weight change [out_features, in_features] before any magnitude (Hu et al. 2021, eq. 3)."""
        return self.scaling * (self.b @ self.a)


@dataclass(frozen=True)
class LoraWeights:
    """Everything an adapter adds: a pair a module, and the tensors of its head where it has one.

    Module names are relative to the backbone ("layers.0.self_attn.q_proj"); head names to the whole model
    ("score.weight", "classifier.bias").
    """

    modules: Mapping[str, LoraPair]
    head: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """Bytes all tensors take in memory."""
        tensors = [t for pair in self.modules.values() for t in (pair.a, pair.b, pair.magnitude)]
        return sum(t.numel() * t.element_size() for t in [*tensors, *self.head.values()] if t is not None)

    def to(self, dtype: torch.dtype) -> LoraWeights:
        """Return a copy with pairs in `dtype`, and the head in float32 or wider: it is small and decides the answer."""
        wide = torch.promote_types(dtype, torch.float32)
        modules = {
            n: LoraPair(p.a.to(dtype), p.b.to(dtype), p.scaling, None if p.magnitude is None else p.magnitude.to(wide))
            for n, p in self.modules.items()
        }
        return LoraWeights(modules, {n: t.to(wide) for n, t in self.head.items()})


def lora_scaling(alpha: float, rank: int, *, rslora: bool) -> float:
    """Return alpha/r (Hu et al. 2021), or alpha/sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise CorruptAdapter where a tensor holds NaN or infinity: zero times infinity would poison other rows."""
    if not bool(torch.isfinite(tensor).all()):
        raise CorruptAdapter(f"tensor {name!r} holds NaN or infinite values; the adapter is refused")


def check_effect(weights: LoraWeights) -> None:
    """Raise CorruptAdapter where the adapter changes nothing: it would silently be the base."""
    if weights.head or any(_changes(pair) for pair in weights.modules.values()):
        return
    raise CorruptAdapter(
        "the adapter changes nothing: every LoRA update is zero (B or A all zeros) and it has no head; was it trained?"
    )


def check_fits(weights: LoraWeights, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise CorruptAdapter where a module is absent from `shapes` (name → (out, in) features) or differs in shape."""
    for name, pair in weights.modules.items():
        if name not in shapes:
            raise CorruptAdapter(
                f"the adapter changes module {name!r}, which the base does not have as a linear layer; "
                "it was made for another architecture"
            )
        expected, found = shapes[name], (int(pair.b.shape[0]), int(pair.a.shape[1]))
        if expected != found:
            raise CorruptAdapter(
                f"module {name!r} of the adapter maps {found[1]} to {found[0]} features, the base's maps "
                f"{expected[1]} to {expected[0]}; it was made for another base"
            )


def _changes(pair: LoraPair) -> bool:
    """Return whether a pair changes its layer; what a magnitude does is known only beside the base's weights."""
    return pair.magnitude is not None or (bool(pair.b.any()) and bool(pair.a.any()))
