"""Where the texts of a packed line lie, and which of them begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from .forest import Forest, grow


@dataclass(frozen=True)
class Bucket:
    """Trees of similar size side by side, padded.

    `index` int64 [trees, size] are their tokens and `real` bool [trees, size] says which are; `sees` bool [trees, size,
    size] says which token sees which, a window left aside. What pads sees itself, so that no row is empty, and stands
    for a token of its own tree: zero times another text's NaN would be NaN. The real tokens are `tokens` int64 [n], and
    `places` int64 [n] is where they stand among all trees * size.
    """

    index: Tensor
    real: Tensor
    sees: Tensor
    tokens: Tensor
    places: Tensor

    def to(self, device: torch.device) -> Bucket:
        """Return the same there."""
        return Bucket(*(each.to(device) for each in (self.index, self.real, self.sees, self.tokens, self.places)))


@dataclass(frozen=True)
class Places:
    """What plain PyTorch needs of a layout, on one device: int64 `positions` [tokens], and all trees in buckets."""

    positions: Tensor
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Layout:
    """A line of tokens without padding, as a forest of segments.

    Segment i holds tokens [starts[i], stops[i]) of the line and continues segment parents[i], one before it, or begins
    a text where that is -1. A token sees what comes before it in its own segment, and all of the segment's ancestors.
    So a beginning that several texts share stands in the line once. Segments lie side by side and cover the line.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise ValueError where this is no such forest."""
        if not len(self.starts) == len(self.stops) == len(self.parents):
            raise ValueError("starts, stops and parents of a layout differ in number")
        if self.starts and (
            self.starts[0] != 0 or any(a != b for a, b in zip(self.stops, self.starts[1:], strict=False))
        ):
            raise ValueError("segments must lie side by side, the first at token 0")
        for i, (start, stop, parent) in enumerate(zip(self.starts, self.stops, self.parents, strict=True)):
            if start >= stop:
                raise ValueError(f"segment {i} has no tokens")
            if not -1 <= parent < i:
                raise ValueError(f"segment {i} continues segment {parent}, which does not come before it")

    @classmethod
    def of(cls, lengths: Sequence[int], parents: Sequence[int] | None = None) -> Layout:
        """Return the layout of segments of these lengths; without `parents`, each is a text of its own."""
        ends = [0]
        for length in lengths:
            ends.append(ends[-1] + length)
        whole = (-1,) * len(lengths) if parents is None else tuple(parents)
        return cls(tuple(a for a, _ in pairwise(ends)), tuple(ends[1:]), whole)

    @property
    def tokens(self) -> int:
        """Tokens of the line."""
        return self.stops[-1] if self.stops else 0

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The position of each segment's first token."""
        found: list[int] = []
        for parent in self.parents:
            found.append(0 if parent < 0 else found[parent] + self.stops[parent] - self.starts[parent])
        return tuple(found)

    @cached_property
    def longest(self) -> int:
        """One more than the highest position."""
        return max((d + b - a for d, a, b in zip(self.depths, self.starts, self.stops, strict=True)), default=0)

    @cached_property
    def positions(self) -> Tensor:
        """Int64 [tokens]: each token's place in its text, from 0."""
        shift = torch.tensor([d - a for d, a in zip(self.depths, self.starts, strict=True)], dtype=torch.int64)
        return torch.arange(self.tokens) + shift.repeat_interleave(self._lengths)

    @cached_property
    def forest(self) -> Forest:
        """The same for the kernels."""
        return grow(self.starts, self.stops, self.parents, self.depths)

    def on(self, device: torch.device) -> Places:
        """Return the same for plain PyTorch operations there; it is moved once."""
        if device not in self._places:
            self._places[device] = Places(
                self.positions.to(device), tuple(bucket.to(device) for bucket in self._buckets)
            )
        return self._places[device]

    @cached_property
    def _places(self) -> dict[torch.device, Places]:
        return {}

    @cached_property
    def _buckets(self) -> tuple[Bucket, ...]:
        trees: dict[int, list[int]] = {}
        roots: list[int] = []
        for i, parent in enumerate(self.parents):
            roots.append(i if parent < 0 else roots[parent])
            trees.setdefault(roots[i], []).append(i)
        sized: dict[int, list[list[int]]] = {}
        for tree in trees.values():
            size = sum(self.stops[i] - self.starts[i] for i in tree)
            sized.setdefault(1 << (size - 1).bit_length(), []).append(tree)
        return tuple(self._bucket(size, tree) for size, tree in sorted(sized.items()))

    @property
    def _lengths(self) -> Tensor:
        return torch.tensor([b - a for a, b in zip(self.starts, self.stops, strict=True)], dtype=torch.int64)

    def _bucket(self, size: int, trees: list[list[int]]) -> Bucket:
        index = torch.tensor([[self.starts[tree[0]]] for tree in trees]).repeat(1, size)
        real = torch.zeros(len(trees), size, dtype=torch.bool)
        sees = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1)
        for row, tree in enumerate(trees):
            tokens = torch.cat([torch.arange(self.starts[i], self.stops[i]) for i in tree])
            place = {segment: k for k, segment in enumerate(tree)}
            over = torch.eye(len(tree), dtype=torch.bool)
            for k, segment in enumerate(tree):
                if self.parents[segment] >= 0:
                    over[k] |= over[place[self.parents[segment]]]
            segments = torch.arange(len(tree)).repeat_interleave(self._lengths[tree])
            at = self.positions[tokens]
            count = len(tokens)
            index[row, :count], real[row, :count] = tokens, True
            sees[row, :count, :count] = over[segments][:, segments] & (at[None, :] <= at[:, None])
        return Bucket(index, real, sees, index[real], real.flatten().nonzero()[:, 0])
