"""Per-row LoRA: each row of a batch gets the update of its own adapter. The slow reference and the fast form."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .weights import LoraPair

NO_SLOT = -1


def add_lora_reference(y: Tensor, x: Tensor, slots: Tensor, pairs: Mapping[int, LoraPair]) -> Tensor:
    """Return `y` plus each row's own update, one adapter after another; the oracle of the fast form.

    `y` is [rows, out], `x` is [rows, in], `slots` is int64 [rows] with NO_SLOT for rows of the bare base.
    """
    result = y.clone()
    for slot, pair in pairs.items():
        rows = (slots == slot).nonzero().squeeze(1)
        if rows.numel():
            result[rows] += (x[rows] @ pair.a.T) @ pair.b.T * pair.scaling
    return result


def add_lora_concat(y: Tensor, x: Tensor, a: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    """Return `y` plus each row's own update in two products, whatever the number of adapters.

    `a` is [ranks, in] and `b` [ranks, out], all adapters' rows stacked, scaling inside `b`; `keep` is bool
    [rows, ranks], true where a rank belongs to the row's adapter. Foreign ranks are *selected* away: multiplying by a
    zero mask would turn one adapter's infinite activation into NaN in every row.
    """
    z = torch.where(keep, x @ a.T, torch.zeros((), dtype=x.dtype, device=x.device))
    return torch.addmm(y, z, b)
