"""Classification heads: from the hidden states of a row to one logit a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterhub.errors import CorruptAdapter

# What a head's tensors must be called, by pooling; biases may be absent.
REQUIRED = {
    "last": ("score.weight",),
    "pooler": ("classifier.weight",),
    "cls": ("classifier.dense.weight", "classifier.out_proj.weight"),
}


def check_head(head: Mapping[str, Tensor], pooling: str, hidden_size: int, *, pooler: bool) -> None:
    """Raise CorruptAdapter where a head cannot stand on states of `hidden_size`: names, shapes, a pooler it needs.

    All of it is checked here, before a row runs: in the shared forward an error would cost every row its answer.
    """
    if pooling not in REQUIRED:
        raise CorruptAdapter(f"the adapter pools by {pooling!r}; known are {', '.join(REQUIRED)}")
    if pooling == "pooler" and not pooler:
        raise CorruptAdapter("the adapter reads the base's pooler, and this base has none")
    missing = [name for name in REQUIRED[pooling] if name not in head]
    if missing:
        raise CorruptAdapter(f"the adapter pools by {pooling!r} but lacks {missing[0]!r}; it has {sorted(head)}")
    for name in REQUIRED[pooling]:
        weight, bias = head[name], head.get(name.replace("weight", "bias"))
        if weight.ndim != 2 or weight.shape[1] != hidden_size:
            raise CorruptAdapter(f"{name!r} has shape {tuple(weight.shape)}; the base gives {hidden_size} features")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise CorruptAdapter(
                f"the bias beside {name!r} has shape {tuple(bias.shape)}, not {tuple(weight.shape[:1])}"
            )
    dense = head.get("classifier.dense.weight")
    if dense is not None and dense.shape[0] != hidden_size:
        raise CorruptAdapter(f"'classifier.dense.weight' has shape {tuple(dense.shape)}; it must keep {hidden_size}")


def label_count(head: Mapping[str, Tensor], pooling: str) -> int:
    """Return how many labels a checked head tells apart."""
    return int(head[REQUIRED[pooling][-1]].shape[0])


def head_logits(
    head: Mapping[str, Tensor], pooling: str, hidden: Tensor, pooler: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Return logits [rows, labels] in the head's dtype for `hidden` [rows, dim].

    `hidden` is the state of the rightmost token for "last", of the first token for "pooler" (through the base's own
    pooler) and "cls" (dense, tanh, projection, as in RoBERTa).
    """
    if pooling == "pooler":
        assert pooler is not None
        hidden = pooler(hidden[:, None, :])
    state = hidden.to(head[REQUIRED[pooling][0]].dtype)
    if pooling == "last":
        return F.linear(state, head["score.weight"], head.get("score.bias"))
    if pooling == "pooler":
        return F.linear(state, head["classifier.weight"], head.get("classifier.bias"))
    dense = F.linear(state, head["classifier.dense.weight"], head.get("classifier.dense.bias"))
    return F.linear(torch.tanh(dense), head["classifier.out_proj.weight"], head.get("classifier.out_proj.bias"))
