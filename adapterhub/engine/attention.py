"""Attention over a batch: every token looks at its own row only, in the line and in the cache."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterhub.native.decode import decode_attention

from .batch import Batch, Decoding, Stretch

NAME = "adapterhub_packed"
# What some families ask of their attention besides scores and a window; ignoring one would change answers silently.
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias")


def attend(
    batch: Batch, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Return [tokens, heads * dim] for `q` [tokens, heads, dim] and `k`, `v` [tokens, key/value heads, dim].

    Keys and values of tokens that stay join the cache first, so later parts of a row find them there. Query heads that
    share a key/value head (GQA) look at it together.
    """
    for store in batch.stores:
        store.put(layer, k, v)
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    for part in batch.decoding:
        if q.device.type == "cpu" and decode_attention(q, part.block.data[layer], part.entries, scale, window, out):
            continue
        found = _decode(batch, part, layer, q, scale, window)
        out.index_copy_(0, part.tokens.index_select(0, part.real), found.index_select(0, part.real))
    for stretch in batch.stretches:
        found = _prefill(batch, stretch, layer, (q, k, v), scale, window)
        out[stretch.start : stretch.stop] = found
    return out


def _decode(batch: Batch, part: Decoding, layer: int, q: Tensor, scale: float, window: int | None) -> Tensor:
    """Return [rows of the block, heads * dim]: each row's new token over the row's positions."""
    keys, values = part.block.data[layer, :, : part.rows, :, : part.longest]
    # The heads of a group take the place of a sequence: they all look at the same positions.
    grouped = q.index_select(0, part.tokens).view(part.rows, keys.shape[1], -1, q.shape[2])
    bias = batch.bias(part, q.dtype, window)
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=scale).reshape(part.rows, -1)


def _prefill(
    batch: Batch, stretch: Stretch, layer: int, qkv: tuple[Tensor, Tensor, Tensor], scale: float, window: int | None
) -> Tensor:
    """Return [tokens of the stretch, heads * dim]."""
    q, k, v = (each[stretch.start : stretch.stop].transpose(0, 1) for each in qkv)
    size = stretch.stop - stretch.start
    if not stretch.fresh:
        assert stretch.place is not None
        past = stretch.past + (size if stretch.keeps else 0)
        keys, values = stretch.place.block.data[layer, :, stretch.place.index, :, :past]
        k, v = (keys, values) if stretch.keeps else (torch.cat([keys, k], 1), torch.cat([values, v], 1))
    # A span that sees nothing but itself needs no table of what it may see, which would be as large as its scores.
    plain = batch.causal and stretch.fresh and window is None
    bias = batch.bias(stretch, q.dtype, window) if batch.causal and not plain else None
    found = F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=bias, is_causal=plain, scale=scale, enable_gqa=q.shape[0] != k.shape[0]
    )
    return found[0].transpose(0, 1).reshape(size, -1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: Batch | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Do for a transformers model what `attend` does; `query` is [1, heads, tokens, dim].

    Returns [1, tokens, heads, dim], the layout transformers expects of an attention function.
    """
    assert packed is not None, "the model was called outside the runner"
    assert attention_mask is None
    if sliding_window is not None and not packed.causal:
        raise ValueError("local attention that looks both ways is not computed here")
    changed = [name for name in _NOT_COMPUTED if others.get(name) is not None]
    if changed:
        raise ValueError(f"attention with {changed[0]} is not computed here")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    out = attend(packed, getattr(module, "layer_idx", 0), q, k, v, scale, sliding_window)
    return out.view(1, q.shape[0], q.shape[1], q.shape[2]), None
