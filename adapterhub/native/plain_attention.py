"""What the attention kernels compute, in plain PyTorch operations: any device, any floating dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Bucket, Layout, Places


@dataclass(frozen=True)
class AttentionShape:
    """Heads of queries, heads of keys and values, size of a head, factor of the scores.

    With a `window` a token sees positions above its own less the window (Mistral's sliding window).
    """

    heads: int
    kv_heads: int
    dim: int
    scale: float
    window: int | None = None

    @property
    def features(self) -> int:
        """Width of a row of queries, keys and values side by side."""
        return (self.heads + 2 * self.kv_heads) * self.dim

    @property
    def out_features(self) -> int:
        """Width of a row of outputs."""
        return self.heads * self.dim


def plain_attention_forward(
    qkv: Tensor, layout: Layout, cos: Tensor, sin: Tensor, shape: AttentionShape
) -> tuple[Tensor, Tensor]:
    """Return out [tokens, heads * dim] and the logarithms of the softmax's sums [tokens, heads]; see attention.py."""
    places = layout.on(qkv.device)
    q, k, v = _heads(qkv, places, cos, sin, shape)
    out = torch.zeros_like(q)
    lse = q.new_zeros(q.shape[:2])
    for bucket in places.buckets:
        scores = _scores(q, k, bucket, places, shape)
        sums = torch.logsumexp(scores, dim=-1)
        found = torch.exp(scores - sums[..., None]) @ _grouped(v[bucket.index], 1, shape)
        out[bucket.tokens] = _real(_flat(found, shape), bucket)
        lse[bucket.tokens] = _real(_flat(sums[..., None], shape), bucket)[..., 0]
    return out.flatten(1).to(qkv.dtype), lse


def plain_attention_backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, layout: Layout, cos: Tensor, sin: Tensor, shape: AttentionShape
) -> Tensor:
    """Return the gradient [tokens, features] with respect to `qkv`; see attention.py."""
    places = layout.on(qkv.device)
    q, k, v = _heads(qkv, places, cos, sin, shape)
    d, o = (each.to(q.dtype).view_as(q) for each in (dout, out))
    deltas = (d * o).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    groups = shape.heads // shape.kv_heads
    for bucket in places.buckets:
        index = bucket.index
        scores = _scores(q, k, bucket, places, shape)
        p = torch.exp(scores - _grouped(lse.to(q.dtype)[..., None][index], groups, shape))
        p = p * bucket.real.view(len(index), 1, 1, -1, 1)
        gradient = _grouped(d[index], groups, shape)
        ds = p * (gradient @ _grouped(v[index], 1, shape).mT - _grouped(deltas[index], groups, shape)) * shape.scale
        dq[bucket.tokens] = _real(_flat(ds @ _grouped(k[index], 1, shape), shape), bucket)
        # A key's gradient is summed over the query heads that share it.
        dk[bucket.tokens] = _real((ds.mT @ _grouped(q[index], groups, shape)).sum(2).transpose(1, 2), bucket)
        dv[bucket.tokens] = _real((p.mT @ gradient).sum(2).transpose(1, 2), bucket)
    angles = _angles(places, cos, sin, q)
    dq, dk = _turned_back(dq, *angles), _turned_back(dk, *angles)
    return torch.cat([each.flatten(1) for each in (dq, dk, dv)], dim=1).to(qkv.dtype)


def _heads(
    qkv: Tensor, places: Places, cos: Tensor, sin: Tensor, shape: AttentionShape
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys (both turned by their positions) and values [tokens, heads, dim], float32 or wider."""
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).view(qkv.shape[0], -1, shape.dim)
    angles = _angles(places, cos, sin, wide)
    q, k, v = torch.split(wide, [shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    return _turned(q, *angles), _turned(k, *angles), v


def _angles(places: Places, cos: Tensor, sin: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    return cos[places.positions][:, None].to(like), sin[places.positions][:, None].to(like)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return vectors [tokens, heads, dim] turned by their positions (RoPE, Su et al. 2021, halves as transformers')."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def _turned_back(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient before the rotation, from that after it: the transpose of `_turned`."""
    low, high = (gradient * sin).chunk(2, dim=-1)
    return gradient * cos + torch.cat([high, -low], dim=-1)


def _looks(bucket: Bucket, places: Places, shape: AttentionShape) -> Tensor:
    """Return which token of a bucket looks at which, bool [trees, size, size]."""
    if shape.window is None:
        return bucket.sees
    at = places.positions[bucket.index]
    return bucket.sees & (at[:, None, :] > at[:, :, None] - shape.window)


def _scores(q: Tensor, k: Tensor, bucket: Bucket, places: Places, shape: AttentionShape) -> Tensor:
    """Return [trees, key/value heads, query heads of each, size, size], -inf where a token does not look."""
    groups = shape.heads // shape.kv_heads
    scores = _grouped(q[bucket.index], groups, shape) @ _grouped(k[bucket.index], 1, shape).mT * shape.scale
    return scores.masked_fill(~_looks(bucket, places, shape)[:, None, None], float("-inf"))


def _real(x: Tensor, bucket: Bucket) -> Tensor:
    """Return the real tokens' [n, heads, dim] of a bucket's `x` [trees, size, heads, dim]."""
    return x.flatten(0, 1).index_select(0, bucket.places)


def _grouped(x: Tensor, groups: int, shape: AttentionShape) -> Tensor:
    """Return [trees, key/value heads, groups, size, n] for `x` [trees, size, heads, n]."""
    return x.transpose(1, 2).reshape(x.shape[0], shape.kv_heads, groups, x.shape[1], x.shape[-1])


def _flat(x: Tensor, shape: AttentionShape) -> Tensor:
    """Return [trees, size, heads, n] for what `_grouped` gave."""
    return x.flatten(1, 2).transpose(1, 2)
