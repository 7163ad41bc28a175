"""All tokens of a step in one line without padding, and where each row's tokens lie; worked out once for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adapterhub.lora.rows import Segment
from adapterhub.native.entries import Entries

from .kv_cache import Block, KVCache, Place
from .plan import Plan
from .request import Row


@dataclass(frozen=True)
class Store:
    """Tokens whose keys and values join a block: their indices in the line, rows of the block, and positions."""

    block: Block
    tokens: Tensor
    rows: Tensor
    positions: Tensor

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write `keys` and `values` [tokens of the line, heads, dim] of a layer into the block."""
        data = self.block.data[layer]
        for target, source in ((data[0], keys), (data[1], values)):
            chosen = source if self._whole(source) else source.index_select(0, self.tokens)
            target.view(-1, target.shape[-1]).index_copy_(0, self._flat, chosen.reshape(-1, chosen.shape[-1]))

    def _whole(self, source: Tensor) -> bool:
        return self.tokens.shape[0] == source.shape[0]

    @cached_property
    def _flat(self) -> Tensor:
        """Int64 [tokens * heads]: where each head's vector goes in the block seen as [.., head_dim]."""
        heads, positions = self.block.data.shape[3], self.block.positions
        head = torch.arange(heads, device=self.rows.device)
        return ((self.rows[:, None] * heads + head) * positions + self.positions[:, None]).flatten()


@dataclass(frozen=True)
class Decoding:
    """The rows of a block that decode.

    `tokens` int64 [rows of the block]: the token of each, or any token for a row that does not decode now; `lengths`
    int64 [rows]: positions to look at, the new token included; `real` int64 lists the rows that decode, in the order of
    the line.
    """

    block: Block
    tokens: Tensor
    lengths: Tensor
    longest: int
    real: Tensor

    @property
    def rows(self) -> int:
        """Rows of the block that are computed."""
        return int(self.tokens.shape[0])

    @cached_property
    def entries(self) -> Entries:
        """The rows that decode, for the kernel."""
        real: list[int] = self.real.tolist()
        tokens, lengths = (each[self.real].tolist() for each in (self.tokens, self.lengths))
        return Entries(tokens, real, lengths)

    def bias(self, dtype: torch.dtype, window: int | None) -> Tensor:
        """Return [rows, 1, 1, longest]: 0 where the row may look, -inf elsewhere."""
        positions = torch.arange(self.longest, device=self.lengths.device)
        allowed = positions[None, :] < self.lengths[:, None]
        if window is not None:
            allowed &= positions[None, :] >= self.lengths[:, None] - window
        return _bias(allowed, dtype)[:, None, None, :]


@dataclass(frozen=True)
class Stretch:
    """The tokens [start, stop) of a span in the line; see Span for the rest."""

    start: int
    stop: int
    past: int
    place: Place | None
    keeps: bool
    branches: tuple[int, ...]

    @property
    def fresh(self) -> bool:
        """True where the span sees nothing but itself, in one line."""
        return self.past == 0 and not self.branches

    def bias(self, dtype: torch.dtype, window: int | None, device: torch.device) -> Tensor:
        """Return [tokens, past + tokens]: 0 where a token may look, -inf elsewhere."""
        own, branch = _offsets(self.stop - self.start, self.branches)
        positions = torch.cat([torch.arange(self.past), self.past + torch.tensor(own)]).to(device)
        branches = torch.cat([torch.full((self.past,), -1), torch.tensor(branch)]).to(device)
        mine = positions[self.past :, None]
        allowed = positions[None, :] <= mine
        if window is not None:
            allowed &= positions[None, :] > mine - window
        allowed &= (branches[None, :] == -1) | (branches[None, :] == branches[self.past :, None])
        return _bias(allowed, dtype)


class Batch:
    """The line of a step: first one token of each decoding row, then the spans; those of one adapter side by side."""

    def __init__(self, plan: Plan, cache: KVCache | None, device: torch.device, *, causal: bool) -> None:
        self.causal, self.device = causal, device
        self.decode = tuple(sorted(plan.decode, key=_decode_order))
        self.spans = tuple(sorted(plan.prefill, key=lambda span: span.row.slot))
        self._tokens = [row.output[-1] for row in self.decode]
        self._positions = [row.length - 1 for row in self.decode]
        stretches: list[Stretch] = []
        for span in self.spans:
            start = len(self._tokens)
            self._tokens += span.tokens
            own, _ = _offsets(len(span.tokens), span.branches)
            self._positions += [span.past + offset for offset in own]
            stretches.append(Stretch(start, len(self._tokens), span.past, span.row.place, span.keeps, span.branches))
        self.stretches = tuple(stretches)
        self.stores = () if cache is None else self._stores()
        self.decoding = self._decoding()
        self._biases: dict[tuple[int, int | None, torch.dtype], Tensor] = {}

    @cached_property
    def tokens(self) -> Tensor:
        """Int64 [tokens]."""
        return torch.tensor(self._tokens, device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        """Int64 [tokens]: each token's place in its own text, from 0."""
        return torch.tensor(self._positions, device=self.device)

    def segments(self) -> list[Segment]:
        """Return which adapter's slot each part of the line uses."""
        single = [Segment(i, i + 1, row.slot) for i, row in enumerate(self.decode)]
        spans = zip(self.spans, self.stretches, strict=True)
        return single + [Segment(stretch.start, stretch.stop, span.row.slot) for span, stretch in spans]

    def bias(self, part: Decoding | Stretch, dtype: torch.dtype, window: int | None) -> Tensor:
        """Return what is added to a part's scores; worked out once a step."""
        key = (id(part), window, dtype)
        if key not in self._biases:
            self._biases[key] = (
                part.bias(dtype, window) if isinstance(part, Decoding) else part.bias(dtype, window, self.device)
            )
        return self._biases[key]

    def _stores(self) -> tuple[Store, ...]:
        """Group the tokens that join the cache by block, and note how far each place is written."""
        found: dict[int, tuple[Block, list[int], list[int], list[int]]] = {}

        def note(place: Place | None, tokens: Sequence[int]) -> None:
            assert place is not None
            _, indices, rows, positions = found.setdefault(id(place.block), (place.block, [], [], []))
            indices += tokens
            rows += [place.index] * len(tokens)
            positions += [self._positions[i] for i in tokens]
            place.used = max(place.used, positions[-1] + 1)
            assert place.used <= place.block.positions, "a row outgrew its place"

        for i, row in enumerate(self.decode):
            note(row.place, [i])
        for stretch in self.stretches:
            if stretch.keeps:
                note(stretch.place, range(stretch.start, stretch.stop))
        return tuple(
            Store(block, *(torch.tensor(each, device=self.device) for each in lists))
            for block, *lists in found.values()
        )

    def _decoding(self) -> tuple[Decoding, ...]:
        by_block: dict[int, list[tuple[int, Row]]] = {}
        for i, row in enumerate(self.decode):
            assert row.place is not None
            by_block.setdefault(id(row.place.block), []).append((i, row))
        return tuple(self._decoding_of(rows) for rows in by_block.values())

    def _decoding_of(self, rows: list[tuple[int, Row]]) -> Decoding:
        places = [row.place for _, row in rows]
        count = 1 + max(place.index for place in places if place is not None)
        tokens, lengths = [rows[0][0]] * count, [1] * count
        for i, row in rows:
            assert row.place is not None
            tokens[row.place.index], lengths[row.place.index] = i, row.length
        assert places[0] is not None
        return Decoding(
            places[0].block,
            torch.tensor(tokens, device=self.device),
            torch.tensor(lengths, device=self.device),
            max(lengths),
            torch.tensor([place.index for place in places if place is not None], device=self.device),
        )


def _decode_order(row: Row) -> tuple[int, int, int]:
    """Put rows of one adapter side by side, so that its matrices meet all of them at once; then as they lie."""
    assert row.place is not None
    return row.slot, row.place.block.positions, row.place.index


def _offsets(size: int, branches: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return each token's offset in its own branch, and the branch's number."""
    lengths = branches or (size,)
    return [i for n in lengths for i in range(n)], [b for b, n in enumerate(lengths) for _ in range(n)]


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.full_like(zero, float("-inf")))
