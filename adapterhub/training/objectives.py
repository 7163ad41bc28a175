"""What is minimised and what is measured, for each kind of task.

Losses are sums over rows (or tokens), and `share` says what to divide by, so a batch cut into parts, however uneven,
has the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterhub.data.task import Kind

from .network import Network
from .rows import Batch


class Objective(Protocol):
    """One kind of task."""

    metric: str
    """The name of the value that validation is judged by."""

    def share(self, batch: Batch) -> Tensor:
        """Return the total weight of a batch, a scalar: what the sum of its losses is divided by."""

    def outputs(self, network: Network, batch: Batch) -> Tensor:
        """Run the network: logits [rows, labels], or [completion tokens, vocabulary]."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of losses, a scalar in float32."""

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return counts that add up over batches."""

    def value(self, tally: Tensor, loss: float) -> float:
        """Return the metric from the added counts, or from the mean loss."""


class Classification:
    """Cross-entropy against label probabilities; one label a row."""

    metric = "accuracy"

    def share(self, batch: Batch) -> Tensor:
        """Return the sum of the rows' weights."""
        return batch.weights.sum()

    def outputs(self, network: Network, batch: Batch) -> Tensor:
        """Return logits [rows, labels]."""
        return network.classify(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over rows."""
        losses = functional.cross_entropy(outputs.float(), batch.targets, reduction="none")
        return (losses * batch.weights).sum()

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return [right rows, rows]."""
        right = (outputs.argmax(-1) == batch.targets.argmax(-1)).sum()
        return torch.stack([right, torch.full_like(right, len(batch.targets))])

    def value(self, tally: Tensor, loss: float) -> float:
        """Return accuracy."""
        return float(tally[0]) / float(tally[1])


class Multilabel(Classification):
    """Binary cross-entropy a label, averaged over labels; a label is given where its probability is at least 0.5."""

    metric = "micro_f1"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over rows of the mean over labels."""
        losses = functional.binary_cross_entropy_with_logits(outputs.float(), batch.targets, reduction="none")
        return (losses.mean(-1) * batch.weights).sum()

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return [true positives, false positives, false negatives] over all labels."""
        given, gold = outputs >= 0, batch.targets >= 0.5
        return torch.stack([(given & gold).sum(), (given & ~gold).sum(), (~given & gold).sum()])

    def value(self, tally: Tensor, loss: float) -> float:
        """Return micro-F1; 1 where there is nothing to find and nothing was found."""
        right, false, missed = tally.tolist()
        return 2 * right / (2 * right + false + missed) if right + false + missed else 1.0


class Generation:
    """Cross-entropy of the completion's tokens, its EOS included, averaged over all such tokens of a batch."""

    metric = "loss"

    def share(self, batch: Batch) -> Tensor:
        """Return the number of completion tokens, each counted with its row's weight."""
        return ((batch.lengths - batch.starts) * batch.weights).sum()

    def outputs(self, network: Network, batch: Batch) -> Tensor:
        """Return logits [completion tokens, vocabulary]; the vocabulary is the costly part, so no others are made."""
        rows, columns = completion_positions(batch)
        with only_positions(network.head, rows, columns - 1):
            logits: Tensor = network.generate_logits(batch)
        return logits[0]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over completion tokens."""
        rows, columns = completion_positions(batch)
        losses = functional.cross_entropy(outputs.float(), batch.input_ids[rows, columns], reduction="none")
        return (losses * batch.weights[rows]).sum()

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return nothing: the loss is the metric."""
        return torch.zeros(0, dtype=torch.long, device=outputs.device)

    def value(self, tally: Tensor, loss: float) -> float:
        """Return the loss a token."""
        return loss


def completion_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (row, column) of every completion token, EOS included and padding not, row by row."""
    columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    rows, found = torch.where((columns >= batch.starts[:, None]) & (columns < batch.lengths[:, None]))
    return rows, found


@contextmanager
def only_positions(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let `head` see only these positions of [rows, columns, hidden]: [1, n, hidden].

    A hook at the door of the head keeps whatever else the model does to its logits (scaling, soft-capping).
    """

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, columns].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def objective_for(kind: Kind) -> Objective:
    """Return the objective of a kind of task."""
    if kind == "generation":
        return Generation()
    return Multilabel() if kind == "multilabel" else Classification()
