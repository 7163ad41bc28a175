"""What one task learns on the shared base: LoRA pairs and a head, in a few flat tensors.

Flat, so that an optimiser step, a clipped norm, a checkpoint or a roll-back is a handful of operations, however many
layers there are. The pairs that the network multiplies with are views of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.base.llama import STACKS
from adapterhub.lora.learning import Member, StackPairs

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Site:
    """A layer that gets a pair: its place (layer, stack, index in the stack), its shape, rank and scaling."""

    layer: int
    stack: int
    index: int
    in_features: int
    out_features: int
    first: int
    rank: int
    scaling: float

    @property
    def module(self) -> str:
        """The name below the backbone, "layers.0.self_attn.q_proj"."""
        return f"layers.{self.layer}.{STACKS[self.stack][self.index]}"


@dataclass(frozen=True)
class _Place:
    """Where a site's pair lies in the flat tensors, and its rows of its stack's A."""

    site: Site
    a: int
    b: int
    low: int


class LearningAdapter:
    """An adapter's parameters, gradients and the pairs made of them.

    `a` and `b` are flat, in float32 or wider; `head` [outputs, hidden] is the classification head or None. Matrices
    that the network multiplies with are in `dtype`, that of the base: views where that is the parameters' own, else
    copies that `refresh` renews.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        outputs: int = 0,
        hidden: int = 0,
        dropout: float = 0.0,
    ) -> None:
        self.dropout = dropout
        self.generator = torch.Generator(device)
        self._places: dict[Site, _Place] = {}
        a = b = 0
        for stack in _by_stack(sites):
            low = 0
            for site in stack:
                self._places[site] = _Place(site, a, b, low)
                a, b, low = a + site.rank * site.in_features, b + site.rank * site.out_features, low + site.rank
        wide = torch.promote_types(dtype, torch.float32)
        self.a = torch.zeros(a, dtype=wide, device=device)
        self.b = torch.zeros(b, dtype=wide, device=device)
        self.head = torch.zeros(outputs, hidden, dtype=wide, device=device) if outputs else None
        for parameter in self.parameters().values():
            parameter.requires_grad_()
            parameter.grad = torch.zeros_like(parameter)
        same = dtype == wide
        self._computed = [p.detach() if same else p.detach().to(dtype) for p in (self.a, self.b)]
        self._gradients = [_gradient(p) if same else torch.zeros_like(p, dtype=dtype) for p in (self.a, self.b)]
        self._pairs = self._make_pairs()
        self._fixed: dict[tuple[int, int], StackPairs] = {}

    @property
    def sites(self) -> list[Site]:
        """The layers that have a pair."""
        return list(self._places)

    @property
    def lowest(self) -> int:
        """The lowest layer that has a pair."""
        return min(site.layer for site in self._places)

    def parameters(self) -> dict[str, Tensor]:
        """Return what learns, by name."""
        found = {"a": self.a, "b": self.b}
        return found if self.head is None else {**found, "head": self.head}

    def start(self, seed: int, head_std: float) -> None:
        """Draw A and the head anew as PEFT and transformers do (B is zero), and seed dropout."""
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for site in self._places:
                # kaiming_uniform with a = sqrt(5), as torch's linear layers have it.
                bound = 1 / math.sqrt(site.in_features)
                a = torch.rand(site.rank, site.in_features, generator=drawn, dtype=torch.float64)
                self.a_of(site).copy_((2 * a - 1) * bound)
            self.b.zero_()
            if self.head is not None:
                self.head.copy_(head_std * torch.randn(self.head.shape, generator=drawn, dtype=torch.float64))
        self.generator.manual_seed(seed)
        self.refresh()

    def a_of(self, site: Site) -> Tensor:
        """Return A [rank, in] of a site: a view that can be written to, without gradient."""
        place = self._places[site]
        flat = self.a.detach()[place.a : place.a + site.rank * site.in_features]
        return flat.view(site.rank, site.in_features)

    def b_of(self, site: Site) -> Tensor:
        """Return B [out, rank] of a site: a view that can be written to, without gradient; it lies transposed."""
        place = self._places[site]
        flat = self.b.detach()[place.b : place.b + site.rank * site.out_features]
        return flat.view(site.rank, site.out_features).T

    def fix(self, pairs: Mapping[Site, tuple[Tensor, Tensor]]) -> None:
        """Have pairs (A [rank, in], B [out, rank]) added to the learnt ones, with the sites' scaling, as they are."""
        dtype, device = self._computed[0].dtype, self.a.device
        for stack in _by_stack(list(pairs)):
            members, rows, scale = [], [], []
            low = 0
            for site in stack:
                a, b = (each.to(device, dtype) for each in pairs[site])
                last = site.first + site.out_features
                members.append(Member(low, low + len(a), site.first, last, b.T.contiguous(), None))
                rows.append(a)
                scale += [site.scaling] * len(a)
                low += len(a)
            made = StackPairs(torch.cat(rows), torch.tensor(scale, dtype=dtype, device=device), tuple(members), None)
            self._fixed[stack[0].layer, stack[0].stack] = made

    def pairs(self, layer: int, stack: int) -> Iterator[StackPairs]:
        """Yield the pairs on a stack: those that learn, then those that do not."""
        for kind in (self._pairs, self._fixed):
            if (layer, stack) in kind:
                yield kind[layer, stack]

    def watch(self, watched: Callable[[tuple[int, int], StackPairs], StackPairs]) -> None:
        """Put others in the place of the pairs that learn, made of those at each (layer, stack)."""
        self._pairs = {place: watched(place, pairs) for place, pairs in self._pairs.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Renew what the network multiplies with after the parameters have changed."""
        for computed, parameter in zip(self._computed, (self.a, self.b), strict=True):
            if computed.dtype != parameter.dtype:
                computed.copy_(parameter)

    @torch.no_grad()
    def collect(self) -> None:
        """Have the gradients of the pairs, added up in the base's dtype, stand at the parameters."""
        for parameter, gradient in zip((self.a, self.b), self._gradients, strict=True):
            if gradient.dtype != parameter.dtype:
                _gradient(parameter).add_(gradient)
                gradient.zero_()

    def clear(self) -> None:
        """Set all gradients to zero."""
        for tensor in (*map(_gradient, self.parameters().values()), *self._gradients):
            tensor.zero_()

    def tensors(self, root: str, head: str) -> dict[str, Tensor]:
        """Return everything under PEFT's saved names, views that can be written to.

        `root` is what stands before a module's name ("model."), `head` the name of the head.
        """
        found = {}
        for site in self._places:
            name = f"{_PREFIX}{root}{site.module}"
            found[f"{name}.lora_A.weight"] = self.a_of(site)
            found[f"{name}.lora_B.weight"] = self.b_of(site)
        if self.head is not None:
            found[f"{_PREFIX}{head}.weight"] = self.head.detach()
        return found

    def _make_pairs(self) -> dict[tuple[int, int], StackPairs]:
        (a, b), (grad_a, grad_b) = self._computed, self._gradients
        found = {}
        for key, places in _grouped(self._places.values()).items():
            first, last = places[0], places[-1]
            width = first.site.in_features
            rows = slice(first.a, last.a + last.site.rank * width)
            members = tuple(
                Member(
                    place.low,
                    place.low + place.site.rank,
                    place.site.first,
                    place.site.first + place.site.out_features,
                    *(_matrix(flat, place.b, place.site.rank, place.site.out_features) for flat in (b, grad_b)),
                )
                for place in places
            )
            scale = [place.site.scaling for place in places for _ in range(place.site.rank)]
            found[key] = StackPairs(
                a[rows].view(-1, width),
                torch.tensor(scale, dtype=a.dtype, device=a.device),
                members,
                grad_a[rows].view(-1, width),
            )
        return found


def _matrix(flat: Tensor, start: int, rows: int, columns: int) -> Tensor:
    return flat[start : start + rows * columns].view(rows, columns)


def _by_stack(sites: Sequence[Site]) -> list[list[Site]]:
    """Return the sites in the order of the network, those of a stack together."""
    found: dict[tuple[int, int], list[Site]] = {}
    for site in sorted(sites, key=lambda site: (site.layer, site.stack, site.index)):
        found.setdefault((site.layer, site.stack), []).append(site)
    return list(found.values())


def _grouped(places: Iterable[_Place]) -> dict[tuple[int, int], list[_Place]]:
    found: dict[tuple[int, int], list[_Place]] = {}
    for place in places:
        found.setdefault((place.site.layer, place.site.stack), []).append(place)
    return found


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
