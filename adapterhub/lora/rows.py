"""Which adapter each row of a batch uses, worked out once a step for all layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.native.slots import SlotRows

from .ops import NO_SLOT

# A segment this long has products large enough to go by itself; shorter ones go as single rows.
_SEGMENT_ROWS = 16
# Idle slots between active ones that are computed along rather than starting another pair of products.
_GAP = 3


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) that use the adapter of `slot`."""

    start: int
    stop: int
    slot: int


@dataclass(frozen=True)
class Group:
    """Rows whose adapters lie in neighbouring slots [low, high), arranged as [slots, height].

    `rows` int64 [slots * height] are indices of rows, padded with a row that is there anyway; `real` int64 picks the
    entries that are no padding (None: all), `targets` int64 the rows they belong to. `start` is the first row where
    the arrangement is simply the rows in order, else None.
    """

    low: int
    high: int
    height: int
    rows: Tensor
    real: Tensor | None
    targets: Tensor
    start: int | None

    def take(self, x: Tensor) -> Tensor:
        """Return [slots, height, features] of `x` [rows, features]."""
        count = self.high - self.low
        if self.start is not None:
            return x[self.start : self.start + count * self.height].view(count, self.height, -1)
        return x.index_select(0, self.rows).view(count, self.height, -1)

    def give(self, y: Tensor, first: int, last: int, update: Tensor) -> None:
        """Add `update` [slots, height, last - first] to its rows of `y` [rows, features], in columns [first, last)."""
        flat = update.view(-1, last - first)
        if self.start is not None:
            y[self.start : self.start + flat.shape[0], first:last].add_(flat)
        else:
            found = flat if self.real is None else flat.index_select(0, self.real)
            y[:, first:last].index_add_(0, self.targets, found)


class RowAdapters:
    """The slots of a batch's rows; shared by all layers, set anew before each forward."""

    def __init__(self) -> None:
        self.length = 0
        self.active: frozenset[int] = frozenset()
        self.segments: tuple[Segment, ...] = ()
        self._single: dict[int, list[int]] = {}
        self._groups: dict[frozenset[int], tuple[Group, ...]] = {}
        self._slots: dict[frozenset[int], SlotRows] = {}
        self._device: torch.device | str = "cpu"

    def assign(self, segments: Iterable[Segment], device: torch.device | str = "cpu") -> None:
        """Set the rows of the next forward; rows in no segment, or in one of NO_SLOT, use the bare base."""
        self._device = device
        self._groups.clear()
        self._slots.clear()
        self._single = {}
        self.length = 0
        long: list[Segment] = []
        for segment in segments:
            self.length = max(self.length, segment.stop)
            if segment.slot == NO_SLOT:
                continue
            if segment.stop - segment.start >= _SEGMENT_ROWS:
                if long and long[-1].slot == segment.slot and long[-1].stop == segment.start:
                    segment = Segment(long.pop().start, segment.stop, segment.slot)
                long.append(segment)
            else:
                self._single.setdefault(segment.slot, []).extend(range(segment.start, segment.stop))
        self.segments = tuple(long)
        self.active = frozenset(self._single) | {segment.slot for segment in long}

    def assign_rows(self, slots: Sequence[int], device: torch.device | str = "cpu") -> None:
        """Set the slot of every row, row by row."""
        self.assign((Segment(i, i + 1, slot) for i, slot in enumerate(slots)), device)

    def of(self, slot: int) -> list[slice | list[int]]:
        """Return indices of the rows that use a slot."""
        found: list[slice | list[int]] = [slice(s.start, s.stop) for s in self.segments if s.slot == slot]
        return [*found, self._single[slot]] if slot in self._single else found

    def single(self, present: frozenset[int]) -> SlotRows:
        """Return the single rows whose slots are in `present`, by slot."""
        found = self._slots.get(present)
        if found is None:
            chosen = {slot: self._single[slot] for slot in sorted(present & self._single.keys())}
            found = self._slots[present] = SlotRows(chosen)
        return found

    def groups(self, present: frozenset[int]) -> tuple[Group, ...]:
        """Return the single rows whose slots are in `present`, in groups of neighbouring slots."""
        found = self._groups.get(present)
        if found is None:
            found = self._groups[present] = tuple(self._group(run) for run in _runs(present & self._single.keys()))
        return found

    def _group(self, slots: list[int]) -> Group:
        low, high = slots[0], slots[-1] + 1
        per_slot = [self._single.get(slot, []) if slot in slots else [] for slot in range(low, high)]
        height = max(len(rows) for rows in per_slot)
        spare = self._single[low][0]
        rows = [row for each in per_slot for row in [*each, *[spare] * (height - len(each))]]
        real = [i * height + k for i, each in enumerate(per_slot) for k in range(len(each))]
        targets = [row for each in per_slot for row in each]
        padded = len(real) < len(rows)
        in_order = not padded and rows == list(range(rows[0], rows[0] + len(rows)))
        return Group(
            low,
            high,
            height,
            torch.tensor(rows, device=self._device),
            torch.tensor(real, device=self._device) if padded else None,
            torch.tensor(targets, device=self._device),
            rows[0] if in_order else None,
        )


def _runs(slots: Iterable[int]) -> list[list[int]]:
    """Split slots where more than `_GAP` idle ones lie between."""
    runs: list[list[int]] = []
    for slot in sorted(slots):
        if runs and slot - runs[-1][-1] <= _GAP + 1:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs
