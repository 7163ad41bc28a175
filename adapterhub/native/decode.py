"""Attention of decoding rows over their cached keys and values, read in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .entries import Entries
from .library import native


def decode_attention(
    q: Tensor, cached: Tensor, entries: Entries, scale: float, window: int | None, out: Tensor
) -> bool:
    """Fill the rows of `out` [tokens, heads * dim] of all entries, and return True.

    `q` is [tokens, heads, dim]; `cached` [2 (keys, values), rows, key/value heads, positions, dim] holds the new
    token's keys and values already. Nothing is done without kernels, for other dtypes than float32, and where a head is
    not whole vectors: engine/attention.py has the plain way.
    """
    kernels = native()
    if kernels is None or not _suited(q, cached, out) or q.shape[2] % kernels.lanes:
        return False
    kernels.decode_attention(q, cached, entries.address, scale, window, out)
    return True


def _suited(q: Tensor, cached: Tensor, out: Tensor) -> bool:
    return (
        all(each.dtype == torch.float32 and each.device.type == "cpu" for each in (q, cached, out))
        and q.stride(2) == 1
        and cached.stride(4) == 1
        and cached.stride(3) == cached.shape[4]
        and out.is_contiguous()
        and not (torch.is_grad_enabled() and q.requires_grad)
    )
