"""The LoRA gradient of every row by itself, as one short vector: what a step on that row alone would do to an adapter.

A fresh adapter has B = 0, so that A has no gradient and that of B is s dy^T (x A^T), summed over the row's tokens: the
gradient of the frozen weight, its inputs already projected to `rank` dimensions by the random A. Of all the pairs it is
laid end to end and projected to `dimensions` by random signs, a block a module, which keeps cosines (Johnson and
Lindenstrauss; Xia et al., "LESS: Selecting influential data for targeted instruction tuning", ICML 2024). Signs are
drawn by seed and module alone, so vectors made at other times and by other programs can be compared. They lie in memory
as bits, and gradients for one line of rows only: memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapterhub.lora.learning import StackPairs
from adapterhub.training.learner import Turn
from adapterhub.training.objectives import Generation
from adapterhub.training.rows import Row

from .adapter import Site
from .network import LINE_TOKENS, PackedLearner, PackedNetwork


class RowGradients:
    """A fresh adapter on a network, asked for the projected gradient of each row's loss; it never takes a step.

    The learner is of a generation task, of no further use, and has no dropout.
    """

    def __init__(self, network: PackedNetwork, learner: PackedLearner, dimensions: int, seed: int = 0) -> None:
        assert learner.adapter.dropout == 0, "a row's gradient is one thing"
        self._network, self._learner, self._dimensions = network, learner, dimensions
        self._signs = {site: _bits(site, dimensions, seed) for site in learner.adapter.sites}
        self._bounds: dict[int, list[tuple[int, int]]] = {}
        self._found = torch.empty(0)
        by_stack: dict[tuple[int, int], list[Site]] = {}
        for site in learner.adapter.sites:
            by_stack.setdefault((site.layer, site.stack), []).append(site)
        learner.adapter.watch(lambda place, pairs: _Watched.of(pairs, self, by_stack[place]))

    def __call__(self, rows: Sequence[Row]) -> np.ndarray:
        """Return float32 [rows, dimensions] of length 1, a row without any gradient zero."""
        found = torch.zeros(len(rows), self._dimensions)
        for part in _lines(rows):
            found[part] = self._line([rows[row] for row in part])
        return torch.nn.functional.normalize(found).numpy()

    def _line(self, rows: Sequence[Row]) -> Tensor:
        """Return what is projected of the rows of one line."""
        tokens = list(accumulate((len(row.ids) for row in rows), initial=0))
        states = list(accumulate((len(row.ids) - row.start for row in rows), initial=0))
        # The last layer goes on with the states that are read alone.
        self._bounds = {bounds[-1]: list(pairwise(bounds)) for bounds in (states, tokens)}
        self._found = torch.zeros(len(rows), self._dimensions)
        self._network.learn_apart(Turn(self._learner, Generation(), rows, 1.0))
        return self._found

    def note(self, site: Site, zt: Tensor, dy: Tensor) -> None:
        """Add a module's part, for z^T [rank, tokens], scaled, and dy [tokens, out] of the line's tokens or states."""
        bounds = self._bounds[len(dy)]
        gradients = torch.stack([(zt[:, a:b] @ dy[a:b]).flatten() for a, b in bounds]).float().cpu()
        self._found.addmm_(gradients, _signs(self._signs[site], self._dimensions))


@dataclass(frozen=True)
class _Watched(StackPairs):
    """Pairs whose backward tells of each module's part instead of adding gradients up."""

    gradients: RowGradients
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, pairs: StackPairs, gradients: RowGradients, sites: Sequence[Site]) -> _Watched:
        members = tuple(replace(member, grad_bt=None) for member in pairs.members)
        return cls(pairs.a, pairs.scale, members, None, gradients, tuple(sites))

    def back(self, dy: Tensor, zt: Tensor) -> Tensor:
        for site, member in zip(self.sites, self.members, strict=True):
            self.gradients.note(site, zt[member.low : member.high], dy[:, member.first : member.last])
        return super().back(dy, zt)


def _bits(site: Site, dimensions: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the signs of a module's block as bits, [rank * out * dimensions / 8]."""
    draw = np.random.default_rng([seed, site.layer, site.stack, site.index])
    return np.frombuffer(draw.bytes(site.rank * site.out_features * dimensions // 8), np.uint8)


def _signs(bits: np.ndarray[Any, np.dtype[np.uint8]], dimensions: int) -> Tensor:
    """Return -1 and 1, float32 [rank * out, dimensions]."""
    return torch.from_numpy(np.unpackbits(bits)).view(-1, dimensions).float().mul_(2).sub_(1)


def _lines(rows: Sequence[Row]) -> list[list[int]]:
    """Return the rows by their places, those of one line together."""
    parts: list[list[int]] = []
    room = 0
    for place, row in enumerate(rows):
        if not parts or len(row.ids) > room:
            parts.append([])
            room = LINE_TOKENS
        parts[-1].append(place)
        room -= len(row.ids)
    return parts
