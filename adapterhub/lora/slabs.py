"""The resident adapters' matrices beside frozen layers, and each row's own update from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from adapterhub.errors import CorruptAdapter
from adapterhub.native.slots import SlabMatrices
from adapterhub.native.updates import add_updates

from .rows import Group, RowAdapters, Segment
from .weights import LoraPair


@dataclass(frozen=True)
class Stacked:
    """One adapter's matrices for layers that read the same input, as they will lie in a slab.

    `a` [sum of ranks, in]; for each layer the adapter changes, `b` [rank, out] with the scaling inside, else None.
    `gain` [sum of outs] is what DoRA multiplies the layers' outputs by, None for plain LoRA; in float32 or wider, since
    it differs from one by little.
    """

    a: Tensor
    b: tuple[Tensor | None, ...]
    gain: Tensor | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """Each layer's rank, 0 where the adapter leaves it alone."""
        return tuple(0 if b is None else int(b.shape[0]) for b in self.b)

    @property
    def changes(self) -> bool:
        """False where the layers compute what they would without."""
        if self.gain is not None and bool(((self.gain - 1).abs() > 1e-4).any()):
            return True
        return bool(self.a.any()) and any(b is not None and bool(b.any()) for b in self.b)

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return sum(t.numel() * t.element_size() for t in (self.a, *self.b, self.gain) if t is not None)


class Frozen(Protocol):
    """What is asked of the frozen layers an adapter with magnitudes sits on."""

    @property
    def squares(self) -> Tensor:
        """Squared norms [sum of outs] of the weight's rows, in float32 or wider."""

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T [rows, sum of outs] without bias."""


# Windows whose views are kept: those of the step at hand and a few before it.
_WINDOWS = 16
# Columns [low, high) of the rank activations, columns [first, last) of the output, and B of the window's slots.
_Part = tuple[int, int, int, int, Tensor]


@dataclass
class _Slab:
    """Adapters of equal ranks: `a` [slots, sum of ranks, in]; for each layer with a rank, `b` [slots, rank, out].

    Slots that were never written are address space only. They may hold anything: no row ever reads their products.
    """

    a: Tensor
    b: tuple[Tensor | None, ...]
    outs: tuple[int, ...]
    present: frozenset[int] = field(default_factory=frozenset)
    _windows: dict[tuple[int, int], tuple[Tensor, list[_Part]]] = field(default_factory=dict)

    @cached_property
    def matrices(self) -> SlabMatrices:
        """Where all that lies, for the kernel."""
        ends = accumulate(self.outs, initial=0)
        chosen = [(b, first) for b, first in zip(self.b, ends, strict=False) if b is not None]
        return SlabMatrices(self.a, [b for b, _ in chosen], [first for _, first in chosen], sum(self.outs))

    def window(self, low: int, high: int) -> tuple[Tensor, list[_Part]]:
        """Return A^T [slots, in, sum of ranks] and the parts of B for slots [low, high): views, made once."""
        found = self._windows.get((low, high))
        if found is None:
            if len(self._windows) >= _WINDOWS:
                self._windows.clear()
            parts, rank, column = [], 0, 0
            for b, out in zip(self.b, self.outs, strict=True):
                if b is not None:
                    parts.append((rank, rank + b.shape[1], column, column + out, b[low:high]))
                    rank += b.shape[1]
                column += out
            found = self._windows[low, high] = self.a[low:high].transpose(1, 2), parts
        return found


class LoraSlabs:
    """The resident adapters of one or several layers that read the same input (q, k and v; gate and up).

    The layers' outputs lie side by side in one output of sum(outs) features. An adapter's matrices are written in place
    when it comes, at its slot, in a slab with others of exactly its ranks: no padding to a maximum. A batch then
    takes one batched product over neighbouring slots that reads each matrix once, in place. Products never mix
    adapters, so an infinite activation of one stays in its own rows.
    """

    def __init__(
        self,
        in_features: int,
        outs: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        slots: int = 1,
    ) -> None:
        """`slots` says for how many to set memory aside at once; slabs grow beyond it."""
        self._in, self._outs, self._dtype, self._device, self._room = in_features, outs, dtype, device, slots
        self._slabs: dict[tuple[int, ...], _Slab] = {}
        self._gains: dict[int, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the matrices that are resident."""
        element = torch.empty(0, dtype=self._dtype).element_size()
        return sum(gain.numel() * gain.element_size() for gain in self._gains.values()) + sum(
            len(slab.present)
            * element
            * (sum(ranks) * self._in + sum(r * out for r, out in zip(ranks, self._outs, strict=True)))
            for ranks, slab in self._slabs.items()
        )

    def stack(self, pairs: Mapping[int, LoraPair], frozen: Frozen) -> Stacked:
        """Return an adapter's matrices, given by index of the layer, ready to be put; may run in any thread.

        Raises CorruptAdapter where scaling overflows the dtype, or a magnitude meets a row of zeros.
        """
        a = torch.cat([pair.a.to(self._dtype) for _, pair in sorted(pairs.items())])
        b = tuple(_scaled(pairs[i], self._dtype) if i in pairs else None for i in range(len(self._outs)))
        return Stacked(
            a, b, self._gain(pairs, frozen) if any(p.magnitude is not None for p in pairs.values()) else None
        )

    def put(self, slot: int, stacked: Stacked) -> None:
        """Write an adapter's matrices at its slot; what was there is dropped."""
        self.drop(slot)
        slab = self._slab(stacked.ranks, slot)
        slab.a[slot] = stacked.a
        for into, b in zip(slab.b, stacked.b, strict=True):
            if into is not None and b is not None:
                into[slot] = b
        slab.present |= {slot}
        if stacked.gain is not None:
            self._gains[slot] = stacked.gain.to(self._device)

    def drop(self, slot: int) -> None:
        """Free a slot; nothing happens where it holds nothing. A slab without adapters is freed whole."""
        self._gains.pop(slot, None)
        for ranks, slab in list(self._slabs.items()):
            if slot in slab.present:
                slab.present -= {slot}
                if not slab.present:
                    del self._slabs[ranks]

    def add(self, y: Tensor, x: Tensor, rows: RowAdapters, bias: Tensor | None = None) -> None:
        """Add each row's own update to `y` [rows, sum(outs)], in place, for `x` [rows, in].

        `bias` [sum(outs)] is what `y` holds of the layers' own biases.
        """
        for slab in self._slabs.values():
            if slab.present.isdisjoint(rows.active):
                continue
            for segment in rows.segments:
                if segment.slot in slab.present:
                    self._add_segment(y, x, slab, segment)
            single = rows.single(slab.present)
            if single.count and not add_updates(y, x, slab.matrices, single):
                for group in rows.groups(slab.present):
                    self._add_group(y, x, slab, group)
        for slot in self._gains.keys() & rows.active:
            for index in rows.of(slot):
                gain = self._gains[slot]
                plain = y[index].to(gain.dtype) if bias is None else y[index].to(gain.dtype) - bias
                y[index] = (plain * gain if bias is None else plain * gain + bias).to(y.dtype)

    def _add_segment(self, y: Tensor, x: Tensor, slab: _Slab, segment: Segment) -> None:
        a, parts = slab.window(segment.slot, segment.slot + 1)
        z = x[segment.start : segment.stop] @ a[0]
        for low, high, first, last, b in parts:
            y[segment.start : segment.stop, first:last].addmm_(z[:, low:high], b[0])

    def _add_group(self, y: Tensor, x: Tensor, slab: _Slab, group: Group) -> None:
        a, parts = slab.window(group.low, group.high)
        z = torch.bmm(group.take(x), a)
        for low, high, first, last, b in parts:
            group.give(y, first, last, torch.bmm(z[:, :, low:high], b))

    def _gain(self, pairs: Mapping[int, LoraPair], frozen: Frozen) -> Tensor:
        """Return each output's magnitude over the norm of its changed weight row: [sum(outs)], one where there is none.

        The norms come from products with the frozen weight W, which may be there in packed form only:
        ||W + sBA||^2 = ||W||^2 + 2s B (W A^T) + s^2 (BA)(BA)^T, row by row.
        """
        gain = torch.ones_like(frozen.squares)
        start = 0
        for i, out in enumerate(self._outs):
            pair = pairs.get(i)
            if pair is not None and pair.magnitude is not None:
                a, b = pair.a.to(gain.dtype), pair.b.to(gain.dtype) * pair.scaling
                part = slice(start, start + out)
                through = frozen.product(pair.a.to(self._dtype))[:, part].to(gain.dtype)
                squares = frozen.squares[part] + 2 * (b * through.T).sum(1) + ((b @ (a @ a.T)) * b).sum(1)
                gain[part] = pair.magnitude.to(gain.dtype) / squares.sqrt()
            start += out
        if not bool(torch.isfinite(gain).all()):
            raise CorruptAdapter("a magnitude of the adapter meets a weight row of zeros; it is refused")
        return gain

    def _slab(self, ranks: tuple[int, ...], slot: int) -> _Slab:
        """Return the slab of these ranks with room for `slot`."""
        slab = self._slabs.get(ranks)
        size = 0 if slab is None else slab.a.shape[0]
        if slab is not None and slot < size:
            return slab
        room = max(slot + 1, 2 * size, self._room)
        a = torch.empty(room, sum(ranks), self._in, dtype=self._dtype, device=self._device)
        b = tuple(
            torch.empty(room, rank, out, dtype=self._dtype, device=self._device) if rank else None
            for rank, out in zip(ranks, self._outs, strict=True)
        )
        fresh = _Slab(a, b, self._outs)
        if slab is not None:
            fresh.present = slab.present
            for old, new in zip((slab.a, *slab.b), (a, *b), strict=True):
                for each in slab.present:
                    if old is not None and new is not None:
                        new[each] = old[each]
        self._slabs[ranks] = fresh
        return fresh


def _scaled(pair: LoraPair, dtype: torch.dtype) -> Tensor:
    """Return scaling * b^T [rank, out] in `dtype`; raises CorruptAdapter where that is not finite."""
    wide = pair.b.to(torch.promote_types(pair.b.dtype, torch.float32))
    scaled = (wide.T * pair.scaling).to(dtype).contiguous()
    # A sum is finite only if all its terms are; where it is not, it may have overflowed itself.
    if not bool(torch.isfinite(scaled.sum())) and not bool(torch.isfinite(scaled).all()):
        raise CorruptAdapter(f"the adapter's scaled B overflows {dtype}; it is refused")
    return scaled
