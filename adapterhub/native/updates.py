"""The low-rank updates of single rows, each by the adapter of its own, read where the adapters' matrices lie."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import suited
from .library import native
from .slots import SlabMatrices, SlotRows


def add_updates(y: Tensor, x: Tensor, matrices: SlabMatrices, rows: SlotRows) -> bool:
    """Add (x A^T) B of each row's slot to `y` [rows, columns], in place, for `x` [rows, in], and return True.

    Without kernels, and for other dtypes than float32, nothing is done: lora/slabs.py has the plain way.
    """
    kernels = native()
    if kernels is None or not matrices.suited or not suited(x, y) or x.dtype != torch.float32:
        return False
    z = torch.empty(rows.count, matrices.ranks)
    kernels.lora_updates(x, y, z, matrices.address, rows.address)
    return True
