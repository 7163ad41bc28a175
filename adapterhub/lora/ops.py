"""Per-row LoRA, the slow reference: each row of a batch gets the update of its own adapter."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .weights import LoraPair

NO_SLOT = -1


def add_lora_reference(y: Tensor, x: Tensor, slots: Tensor, pairs: Mapping[int, LoraPair]) -> Tensor:
    """Return `y` plus each row's own update, one adapter after another; the oracle of the fast form in `slabs`.

    `y` is [rows, out], `x` is [rows, in], `slots` is int64 [rows] with NO_SLOT for rows of the bare base.
    """
    result = y.clone()
    for slot, pair in pairs.items():
        rows = (slots == slot).nonzero().squeeze(1)
        if rows.numel():
            result[rows] += (x[rows] @ pair.a.T) @ pair.b.T * pair.scaling
    return result
