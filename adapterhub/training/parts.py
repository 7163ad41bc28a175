"""A batch in parts that fit into memory, with the loss and the gradient of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import split_by_tokens
from .objectives import Objective, View
from .rows import PaddedBatch, Row, collate


@dataclass(frozen=True)
class Limits:
    """How rows become batches: rows a batch, padded tokens a part of one, and the id that pads."""

    batch_size: int
    max_tokens: int
    pad_token_id: int


def parts_of(rows: Sequence[Row], limits: Limits, device: torch.device) -> list[PaddedBatch]:
    """Return `rows`, in order, as parts of at most `limits.max_tokens` padded tokens."""
    parts = split_by_tokens(range(len(rows)), [row.length for row in rows], limits.max_tokens)
    return [collate([rows[i] for i in part], limits.pad_token_id, device) for part in parts]


def accumulate(
    view: View, objective: Objective, rows: Sequence[Row], share: float, limits: Limits, device: torch.device
) -> float:
    """Add up the gradients of the rows' loss, divided by `share`, part by part; return that loss."""
    parts = parts_of(rows, limits, device)
    if objective.joint and len(parts) > 1:
        return _jointly(view, objective, parts, collate(rows, limits.pad_token_id, device), share)
    total = 0.0
    for part in parts:
        loss = objective.loss(objective.outputs(view, part), part) / share
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _jointly(view: View, objective: Objective, parts: Sequence[PaddedBatch], whole: PaddedBatch, share: float) -> float:
    """Where the loss of a row depends on all others: run the parts twice, first for the loss, then for the gradients.

    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021. The second run draws
    the same random numbers as the first, so dropout is the same in both.
    """
    with torch.random.fork_rng(), torch.no_grad():
        outputs = torch.cat([objective.outputs(view, part) for part in parts])
    outputs.requires_grad_()
    loss = objective.loss(outputs, whole) / share
    (gradient,) = torch.autograd.grad(loss, outputs)
    sizes = [len(part.lengths) for part in parts]
    for part, piece in zip(parts, torch.split(gradient, sizes), strict=True):
        (objective.outputs(view, part) * piece).sum().backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def outputs_of(
    view: View, objective: Objective, rows: Sequence[Row], limits: Limits, device: torch.device
) -> Iterator[tuple[Tensor, PaddedBatch]]:
    """Yield what the network says of the parts of a batch; of the whole where losses depend on it. For evaluation."""
    parts = parts_of(rows, limits, device)
    if objective.joint and len(parts) > 1:
        joined = torch.cat([objective.outputs(view, part) for part in parts])
        yield joined, collate(rows, limits.pad_token_id, device)
        return
    for part in parts:
        yield objective.outputs(view, part), part
