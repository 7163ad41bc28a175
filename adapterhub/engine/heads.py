"""Classification heads: from the hidden states of a row to one logit a label."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterhub.errors import CorruptAdapter

# What a head's tensors must be called, by pooling; biases may be absent.
REQUIRED = {
    "last": ("score.weight",),
    "pooler": ("classifier.weight",),
    "cls": ("classifier.dense.weight", "classifier.out_proj.weight"),
}


def check_head(head: Mapping[str, Tensor], pooling: str | None) -> None:
    """Raise CorruptAdapter where tensors the pooling needs are missing."""
    missing = [name for name in REQUIRED.get(pooling or "", ()) if name not in head]
    if missing:
        raise CorruptAdapter(f"the adapter pools by {pooling!r} but lacks {missing[0]!r}; it has {sorted(head)}")


def head_logits(head: Mapping[str, Tensor], pooling: str, hidden: Tensor, backbone: nn.Module) -> Tensor:
    """Return logits [rows, labels] in the head's dtype for `hidden` [rows, dim].

    `hidden` is the state of the rightmost token for "last", of the first token for "pooler" (through the base's own
    pooler) and "cls" (dense, tanh, projection, as in RoBERTa).
    """
    if pooling == "pooler":
        pooler = backbone.pooler
        assert isinstance(pooler, nn.Module)
        hidden = pooler(hidden[:, None, :])
    state = hidden.to(head[REQUIRED[pooling][0]].dtype)
    if pooling == "last":
        return F.linear(state, head["score.weight"], head.get("score.bias"))
    if pooling == "pooler":
        return F.linear(state, head["classifier.weight"], head.get("classifier.bias"))
    dense = F.linear(state, head["classifier.dense.weight"], head.get("classifier.dense.bias"))
    return F.linear(torch.tanh(dense), head["classifier.out_proj.weight"], head.get("classifier.out_proj.bias"))
