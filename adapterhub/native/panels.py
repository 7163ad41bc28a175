"""A matrix as source/product.cpp reads it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the matrix, at a time: checking and packing it must not need its memory again.
_CHUNK_ROWS = 4096


def pack_panels(weight: Tensor, high: int) -> Tensor | None:
    """Return bfloat16 panels [ceil(out / high), ceil(in / 2), high, 2] of a float32 `weight` [out, in], zeros behind.

    None where a number of it is no bfloat16.
    """
    rows, columns = weight.shape
    panels = torch.zeros(-(-rows // high), -(-columns // 2), high, 2, dtype=torch.bfloat16)
    step = _CHUNK_ROWS // high * high
    for start in range(0, rows, step):
        chunk = weight[start : start + step]
        narrow = chunk.bfloat16()
        if not torch.equal(narrow.float(), chunk):
            return None
        full = F.pad(narrow, (0, columns % 2, 0, -len(chunk) % high)).view(-1, high, panels.shape[1], 2)
        panels[start // high : start // high + len(full)] = full.transpose(1, 2)
    return panels


def unpack_panels(panels: Tensor, rows: int, columns: int) -> Tensor:
    """Return the float32 weight [rows, columns] that `pack_panels` made panels of."""
    groups, pairs, high, _ = panels.shape
    return panels.transpose(1, 2).reshape(groups * high, 2 * pairs)[:rows, :columns].float()
