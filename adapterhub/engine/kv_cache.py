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

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self._dtype, self._device = shape, dtype, device
        self._rows = self._positions = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._grow(1, _STEP)

    def reserve(self, rows: int, positions: int) -> None:
        """Make room for the first `rows` rows to hold `positions` each."""
        if rows > self._rows or positions > self._positions:
            wanted = -(-max(positions, self._positions) // _STEP) * _STEP
            self._grow(max(rows, self._rows), wanted)

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

    def _grow(self, rows: int, positions: int) -> None:
        size = (rows, self.shape.heads, positions, self.shape.head_dim)
        for blocks in (self.keys, self.values):
            # One layer at a time, so that old and new blocks never all exist at once.
            for layer in range(self.shape.layers):
                block = torch.zeros(size, dtype=self._dtype, device=self._device)
                if layer < len(blocks):
                    block[: self._rows, :, : self._positions] = blocks[layer]
                    blocks[layer] = block
                else:
                    blocks.append(block)
        self._rows, self._positions = rows, positions
