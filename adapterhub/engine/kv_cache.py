"""Keys and values of the running rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STEP = 64


@dataclass(frozen=True)
class CacheShape:
    """Layers, key/value heads and head size of a decoder."""

    layers: int
    heads: int
    head_dim: int


class KVCache:
    """A block a layer, [rows, heads, positions, head_dim]; running rows always occupy the first ones.

    So the rows of a decode step are a view, never a gather. Blocks grow as rows come and answers lengthen. Values of a
    freed row are wiped: attention multiplies masked positions by zero, and zero times a NaN that a poisoned adapter
    left behind would be NaN in the next row that sits there.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device, max_tokens: int) -> None:
        self.shape, self._dtype, self._device, self._max_tokens = shape, dtype, device, max_tokens
        self._rows = self._positions = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._resize(1, _STEP, 0)

    def reserve(self, rows: int, positions: int, live: int) -> None:
        """Make room for the first `rows` rows to hold `positions` each; the first `live` rows keep what they hold.

        Blocks grow in both directions while their product stays within `max_tokens`; past it they are cut to what is
        needed now, or the rows of yesterday times the lengths of today would take far more than either.
        """
        if rows <= self._rows and positions <= self._positions:
            return
        wanted = -(-max(positions, self._positions) // _STEP) * _STEP
        if max(rows, self._rows) * wanted <= self._max_tokens:
            self._resize(max(rows, self._rows), wanted, live)
        else:
            self._resize(rows, -(-positions // _STEP) * _STEP, live)

    def free(self, row: int, last: int, used: int, last_used: int) -> None:
        """Release `row` by moving row `last` into its place and wiping `last`; `used` counts positions of each."""
        longest = max(used, last_used)
        for keys, values in zip(self.keys, self.values, strict=True):
            if row != last:
                keys[row, :, :longest] = keys[last, :, :longest]
                values[row, :, :longest] = values[last, :, :longest]
            values[last, :, :longest] = 0

    @property
    def bytes(self) -> int:
        """Bytes the blocks take."""
        return 2 * sum(block.numel() * block.element_size() for block in self.keys)

    def _resize(self, rows: int, positions: int, live: int) -> None:
        size = (rows, self.shape.heads, positions, self.shape.head_dim)
        keep, length = min(live, self._rows), min(positions, self._positions)
        # Both lists are made before either takes its place: running out of memory half-way leaves the old ones whole.
        fresh: list[list[Tensor]] = []
        for blocks in (self.keys, self.values):
            made = [torch.zeros(size, dtype=self._dtype, device=self._device) for _ in range(self.shape.layers)]
            for old, block in zip(blocks, made, strict=False):
                block[:keep, :, :length] = old[:keep, :, :length]
            fresh.append(made)
        self.keys, self.values = fresh
        self._rows, self._positions = rows, positions
