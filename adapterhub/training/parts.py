"""A batch in parts that fit into memory, with the loss and the gradient of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import split_by_tokens
from .network import Network
from .objectives import Objective
from .rows import Batch, Row, collate


@dataclass(frozen=True)
class Limits:
    """How rows become batches: rows a batch, padded tokens a part of one, and the id that pads."""

    batch_size: int
    max_tokens: int
    pad_token_id: int


def parts_of(rows: Sequence[Row], limits: Limits, device: torch.device) -> list[Batch]:
    """Return `rows`, in order, as parts of at most `limits.max_tokens` padded tokens."""
    parts = split_by_tokens(range(len(rows)), [row.length for row in rows], limits.max_tokens)
    return [collate([rows[i] for i in part], limits.pad_token_id, device) for part in parts]


def accumulate(
    network: Network,
    objective: Objective,
    rows: Sequence[Row],
    limits: Limits,
    device: torch.device,
    backward: Callable[[Tensor], object],
) -> tuple[float, int]:
    """Add up the gradients of the mean loss of a batch, part by part; return that loss and the batch's tokens."""
    parts = parts_of(rows, limits, device)
    share = sum(objective.share(part) for part in parts)
    tokens = sum(part.tokens for part in parts)
    if objective.joint and len(parts) > 1:
        return _jointly(network, objective, parts, collate(rows, limits.pad_token_id, device), backward), tokens
    total = 0.0
    for part in parts:
        loss = objective.loss(objective.outputs(network, part), part) / share
        backward(loss)
        total += float(loss.detach())
    return total, tokens


def _jointly(
    network: Network, objective: Objective, parts: Sequence[Batch], whole: Batch, backward: Callable[[Tensor], object]
) -> float:
    """Where the loss of a row depends on all others: run the parts twice, first for the loss, then for the gradients.

    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021. The second run draws
    the same random numbers as the first, so dropout is the same in both.
    """
    with torch.random.fork_rng(), torch.no_grad():
        outputs = torch.cat([objective.outputs(network, part) for part in parts])
    outputs.requires_grad_()
    loss = objective.loss(outputs, whole) / objective.share(whole)
    (gradient,) = torch.autograd.grad(loss, outputs)
    sizes = [len(part.lengths) for part in parts]
    for part, piece in zip(parts, torch.split(gradient, sizes), strict=True):
        backward((objective.outputs(network, part) * piece).sum())
    return float(loss.detach())


def outputs_of(
    network: Network, objective: Objective, rows: Sequence[Row], limits: Limits, device: torch.device
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield what the network says of the parts of a batch; of the whole where losses depend on it. For evaluation."""
    parts = parts_of(rows, limits, device)
    if objective.joint and len(parts) > 1:
        joined = torch.cat([objective.outputs(network, part) for part in parts])
        yield joined, collate(rows, limits.pad_token_id, device)
        return
    for part in parts:
        yield objective.outputs(network, part), part
