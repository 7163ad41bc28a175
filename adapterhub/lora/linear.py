"""A frozen linear layer whose rows may each use another adapter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapterhub.errors import CorruptAdapter

from .ops import NO_SLOT, add_lora_concat
from .weights import LoraPair

_FIRST_ROWS = 64
# Owner of a free rank. Not NO_SLOT, or rows of the bare base would pick up what a departed adapter left there.
_FREE = -2


@dataclass
class RowAdapters:
    """Which slot each row of the running batch uses; shared by all layers, set anew before each forward.

    `slots` is int64 [rows], NO_SLOT for the bare base; None while no row uses an adapter.
    """

    slots: Tensor | None = None
    active: frozenset[int] = frozenset()
    _masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def assign(self, slots: Iterable[int], device: torch.device | str = "cpu") -> None:
        """Set the slot of every row of the next forward."""
        rows = list(slots)
        self.active = frozenset(rows) - {NO_SLOT}
        self.slots = torch.tensor(rows, dtype=torch.int64, device=device) if self.active else None
        self._masks.clear()

    def mask(self, owners: tuple[int, ...]) -> Tensor:
        """Return bool [rows, len(owners)]: does the rank owned by a slot belong to the row? Built once a layout."""
        if owners not in self._masks:
            assert self.slots is not None
            owner = torch.tensor(owners, dtype=torch.int64, device=self.slots.device)
            self._masks[owners] = self.slots[:, None] == owner[None, :]
        return self._masks[owners]


class AdapterLinear(nn.Module):
    """A frozen layer (nn.Linear, or transformers' Conv1D) plus the resident adapters' rows beside it.

    Adapters live in two slabs, A [capacity, in] and B [capacity, out] (scaling inside B), each in a contiguous range of
    rows of its true rank, written in place when it comes. A batch uses the smallest window that covers its adapters.
    """

    def __init__(self, frozen: nn.Module, in_features: int, out_features: int, rows: RowAdapters) -> None:
        super().__init__()
        self.frozen = frozen
        self.in_features, self.out_features = in_features, out_features
        self._rows = rows
        weight = frozen.weight
        assert isinstance(weight, Tensor)
        self._a = torch.zeros(0, in_features, dtype=weight.dtype, device=weight.device)
        self._b = torch.zeros(0, out_features, dtype=weight.dtype, device=weight.device)
        self._ranges: dict[int, tuple[int, int]] = {}
        self._owners: list[int] = []

    def put(self, slot: int, pair: LoraPair) -> None:
        """Write an adapter's matrices into its rows; raises CorruptAdapter if scaling overflows the dtype."""
        wide = pair.b.to(torch.promote_types(pair.b.dtype, torch.float32))
        scaled = (wide * pair.scaling).T.to(self._b.dtype)
        if not bool(torch.isfinite(scaled).all()):
            raise CorruptAdapter(f"the adapter's scaled B overflows {self._b.dtype}; it is refused")
        start = self._room(pair.rank)
        self._a[start : start + pair.rank] = pair.a.to(self._a.dtype)
        self._b[start : start + pair.rank] = scaled
        self._ranges[slot] = (start, start + pair.rank)
        self._owners[start : start + pair.rank] = [slot] * pair.rank

    def drop(self, slot: int) -> None:
        """Free a slot's rows. What they hold stays finite, so it needs no wiping."""
        start, end = self._ranges.pop(slot, (0, 0))
        self._owners[start:end] = [_FREE] * (end - start)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., rows, in] to [..., rows, out]; rows of the flattened batch are those of RowAdapters."""
        y: Tensor = self.frozen(x)
        active = [self._ranges[slot] for slot in self._rows.active if slot in self._ranges]
        if not active:
            return y
        low, high = min(r[0] for r in active), max(r[1] for r in active)
        keep = self._rows.mask(tuple(self._owners[low:high]))
        flat = add_lora_concat(
            y.reshape(-1, self.out_features),
            x.reshape(-1, self.in_features),
            self._a[low:high],
            self._b[low:high],
            keep,
        )
        return flat.view(y.shape)

    def _room(self, rank: int) -> int:
        """Return the start of the first free gap of `rank` rows, growing the slabs where there is none."""
        start = 0
        for low, high in sorted(self._ranges.values()):
            if low - start >= rank:
                break
            start = high
        missing = start + rank - len(self._owners)
        if missing > 0:
            extra = max(missing, _FIRST_ROWS, len(self._owners))
            self._a = torch.cat([self._a, self._a.new_zeros(extra, self.in_features)])
            self._b = torch.cat([self._b, self._b.new_zeros(extra, self.out_features)])
            self._owners += [_FREE] * extra
        return start


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (out, in) features of a layer an adapter can sit on, else None.

    transformers' Conv1D (GPT-2) stores its weight as [in, out].
    """
    if isinstance(module, AdapterLinear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if type(module).__name__ == "Conv1D":
        weight = module.weight
        assert isinstance(weight, Tensor)
        return int(weight.shape[1]), int(weight.shape[0])
    return None


def linear_shapes(backbone: nn.Module) -> dict[str, tuple[int, int]]:
    """Return name → (out, in) features of every layer of the backbone that an adapter can sit on."""
    found = {}
    for name, module in backbone.named_modules():
        if name.endswith(".frozen"):
            continue
        shape = linear_shape(module)
        if shape is not None:
            found[name] = shape
    return found
