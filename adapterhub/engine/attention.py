"""Attention over a packed batch: tokens of all rows in one line, no padding in any linear layer.

A transformers model calls this in place of its own attention. The packed line holds first one token for each decoding
row, then the whole prompt of each new row; every token attends to its own row only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kv_cache import KVCache

NAME = "adapterhub_packed"
# What some families ask of their attention besides scores and a window; ignoring one would change answers silently.
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class PackedBatch:
    """Where each row's tokens lie in the packed line.

    `decode_lengths` int64 [decoding rows]: positions before the row's new token; row i is row i of the cache.
    `prompts`: (start, end, cache row or None) of each new row. `causal` is False for encoders.
    """

    decode_lengths: Tensor
    prompts: tuple[tuple[int, int, int | None], ...]
    cache: KVCache | None
    causal: bool = True

    @cached_property
    def decoding(self) -> int:
        """How many rows decode."""
        return int(self.decode_lengths.shape[0])

    @cached_property
    def longest(self) -> int:
        """Positions the longest decoding row has, its new token included."""
        return int(self.decode_lengths.max()) + 1

    @cached_property
    def decode_mask(self) -> Tensor:
        """Bool [decoding, 1, 1, longest], true where the row may look at the position."""
        positions = torch.arange(self.longest, device=self.decode_lengths.device)
        return (positions[None, :] <= self.decode_lengths[:, None])[:, None, None, :]

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor] | None:
        """Index int64 [prompts, longest] into the packed line and its validity, or None where padding would waste."""
        lengths = [end - start for start, end, _ in self.prompts]
        if len(lengths) < 2 or len(lengths) * max(lengths) > 2 * sum(lengths):
            return None
        device = self.decode_lengths.device
        starts = torch.tensor([start for start, _, _ in self.prompts], device=device)
        sizes = torch.tensor(lengths, device=device)
        offsets = torch.arange(max(lengths), device=device)
        valid = offsets[None, :] < sizes[:, None]
        return torch.where(valid, starts[:, None] + offsets[None, :], starts[:, None]), valid


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: PackedBatch | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within rows; `query` is [1, heads, tokens, dim], keys and values may have fewer heads (GQA).

    Returns [1, tokens, heads, dim], the layout transformers expects of an attention function.
    """
    assert packed is not None, "the model was called outside the runner"
    assert attention_mask is None
    changed = [name for name in _NOT_COMPUTED if others.get(name) is not None]
    if changed:
        raise ValueError(f"attention with {changed[0]} is not computed here")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = getattr(module, "layer_idx", None)
    q, k, v = query[0], key[0], value[0]
    out = torch.empty_like(q)
    if packed.decoding:
        assert layer is not None
        out[:, : packed.decoding] = _decode(packed, layer, q, k, v, scale, sliding_window)
    if packed.prompts:
        _prefill(packed, layer, (q, k, v, out), scale, sliding_window)
    return out.transpose(0, 1).unsqueeze(0), None


def _decode(
    packed: PackedBatch, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None
) -> Tensor:
    """Return [heads, decoding, dim] for the new tokens, whose keys and values join the cache."""
    assert packed.cache is not None
    count, longest = packed.decoding, packed.longest
    rows = torch.arange(count, device=q.device)
    keys, values = packed.cache.keys[layer], packed.cache.values[layer]
    keys[rows, :, packed.decode_lengths] = k[:, :count].transpose(0, 1)
    values[rows, :, packed.decode_lengths] = v[:, :count].transpose(0, 1)
    kv_heads = k.shape[0]
    groups = q.shape[0] // kv_heads
    grouped = q[:, :count].transpose(0, 1).reshape(count, kv_heads, groups, -1) * scale
    scores = grouped @ keys[:count, :, :longest].transpose(-1, -2)
    allowed = packed.decode_mask
    if window is not None and longest > window:
        positions = torch.arange(longest, device=q.device)
        allowed = allowed & (positions > packed.decode_lengths[:, None, None, None] - window)
    scores = scores.masked_fill(~allowed, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(v.dtype)
    attended = weights @ values[:count, :, :longest]
    return attended.reshape(count, q.shape[0], -1).transpose(0, 1)


def _prefill(
    packed: PackedBatch,
    layer: int | None,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float,
    window: int | None,
) -> None:
    """Fill the prompts' part of `out`, and their keys and values in the cache where the row goes on."""
    q, k, v, out = tensors
    if packed.padded is None:
        for start, end, _ in packed.prompts:
            mask = _mask(end - start, packed.causal, window, q.device)
            out[:, start:end] = _sdpa(q[:, start:end], k[:, start:end], v[:, start:end], mask, scale)
    else:
        index, valid = packed.padded
        size = index.shape[1]
        mask = valid[:, None, None, :]
        square = _mask(size, packed.causal, window, q.device)
        if square is not None:
            mask = mask & square
        queries, keys, values = (t[:, index].transpose(0, 1) for t in (q, k, v))
        padded = _sdpa(queries, keys, values, mask, scale)
        out[:, index[valid]] = padded.transpose(0, 1)[:, valid]
    if packed.cache is not None and layer is not None:
        for start, end, row in packed.prompts:
            if row is not None:
                packed.cache.keys[layer][row, :, : end - start] = k[:, start:end]
                packed.cache.values[layer][row, :, : end - start] = v[:, start:end]


def _mask(size: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Return bool [size, size], or None where everything is allowed."""
    if not causal:
        return None
    rows = torch.arange(size, device=device)
    allowed = rows[None, :] <= rows[:, None]
    if window is not None and size > window:
        allowed = allowed & (rows[None, :] > rows[:, None] - window)
    return allowed


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return torch's attention for [.., heads, tokens, dim], with grouped heads where k has fewer."""
    batched = q.ndim == 4
    if not batched:
        q, k, v = q[None], k[None], v[None]
    grouped = q.shape[1] != k.shape[1]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return attended if batched else attended[0]
