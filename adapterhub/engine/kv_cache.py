"""Keys and values of the running rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 128


@dataclass(frozen=True)
class CacheShape:
    """Layers, key/value heads and head size of a decoder."""

    layers: int
    heads: int
    head_dim: int


class Block:
    """Places of one length: `data` [layers, 2 (keys, values), rows, heads, positions, head_dim].

    The rows in use are the first ones, so a decode step reads a view of them, never a gather. Whatever no row holds is
    zero: attention multiplies masked positions by zero, and zero times a NaN that a poisoned adapter left behind would
    be NaN in the next row that sits there.
    """

    def __init__(self, positions: int, data: Tensor) -> None:
        self.positions = positions
        self.data = data
        self.places: list[Place] = []

    @property
    def capacity(self) -> int:
        """Rows there is memory for."""
        return int(self.data.shape[2])


@dataclass(eq=False)
class Place:
    """A row's room in a block. `index` changes when another row leaves; `used` bounds the positions written to."""

    block: Block
    index: int
    used: int = 0


class KVCache:
    """Blocks of places, each for rows that need up to so many positions (powers of two from 128 on).

    So a long row takes room and time of its own, and does not make every other row as long. Blocks together never hold
    more than `max_tokens` positions.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device, max_tokens: int) -> None:
        self.shape, self._dtype, self._device, self._max_tokens = shape, dtype, device, max_tokens
        self._blocks: dict[int, Block] = {}

    @property
    def bytes(self) -> int:
        """Bytes the blocks take; other threads may ask."""
        return sum(block.data.numel() * block.data.element_size() for block in list(self._blocks.values()))

    def could(self, room: int) -> bool:
        """Return whether a row of `room` positions fits into an empty cache."""
        return self._length(room) <= self._max_tokens

    def take(self, room: int) -> Place | None:
        """Return a place for a row of at most `room` positions, or None where other rows must leave first."""
        positions = self._length(room)
        used = sum(len(block.places) * block.positions for block in self._blocks.values())
        if used + positions > self._max_tokens:
            return None
        block = self._blocks.get(positions)
        if block is None:
            block = Block(positions, self._zeros(0, positions))
            self._blocks[positions] = block
        if len(block.places) == block.capacity:
            self._grow(block)
        place = Place(block, len(block.places))
        block.places.append(place)
        return place

    def release(self, place: Place) -> None:
        """Give a place back: the block's last row moves into it, and what the last one held is wiped."""
        block, last = place.block, place.block.places.pop()
        if last is not place:
            longest = max(place.used, last.used)
            block.data[:, :, place.index, :, :longest] = block.data[:, :, last.index, :, :longest]
            block.places[place.index] = last
            place.index, last.index = last.index, place.index
        block.data[:, :, place.index, :, : max(place.used, last.used)] = 0
        if not block.places:
            del self._blocks[block.positions]

    def read(self, place: Place, start: int, stop: int) -> Tensor:
        """Return a copy of positions [start, stop): [layers, 2, heads, stop - start, head_dim]."""
        return place.block.data[:, :, place.index, :, start:stop].clone()

    def write(self, place: Place, start: int, states: Tensor) -> None:
        """Put what `read` gave into positions from `start` on."""
        stop = start + states.shape[3]
        place.block.data[:, :, place.index, :, start:stop] = states
        place.used = max(place.used, stop)

    def _length(self, room: int) -> int:
        """Return the length of the places that hold `room` positions; the longest is the whole cache."""
        length = _SMALLEST
        while length < room:
            length *= 2
        return min(length, max(self._max_tokens, room))

    def _grow(self, block: Block) -> None:
        """Double a block's rows, within what other blocks leave free; where that is too little, others are cut."""
        others = [each for each in self._blocks.values() if each is not block]
        spare = self._max_tokens - sum(each.capacity * each.positions for each in others)
        needed = len(block.places) + 1
        if needed * block.positions > spare:
            for other in others:
                self._resize(other, len(other.places))
            spare = self._max_tokens - sum(each.capacity * each.positions for each in others)
        self._resize(block, max(needed, min(2 * block.capacity, spare // block.positions)))

    def _resize(self, block: Block, rows: int) -> None:
        if rows == block.capacity:
            return
        fresh = self._zeros(rows, block.positions)
        for place in block.places:
            fresh[:, :, place.index, :, : place.used] = block.data[:, :, place.index, :, : place.used]
        block.data = fresh

    def _zeros(self, rows: int, positions: int) -> Tensor:
        size = (self.shape.layers, 2, rows, self.shape.heads, positions, self.shape.head_dim)
        return torch.zeros(size, dtype=self._dtype, device=self._device)
