"""What is minimised and what is measured, for each kind of task.

Losses are sums over rows (or tokens), and `share` says what to divide by, so a batch cut into parts, however uneven,
has the gradient of the whole. Where a row's loss depends on the other rows (`joint`), `loss` needs the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterhub.recipe import Kind, Training

from .contrast import contrastive_losses, recall_at_1, unit
from .network import Network
from .preference import log_probabilities, margins, preference_losses
from .rows import FIRST, Batch


class Objective(Protocol):
    """One kind of task."""

    metric: str
    """The name of the value that validation is judged by."""

    joint: bool
    """Whether the loss of a row depends on the other rows of its batch."""

    def share(self, batch: Batch) -> Tensor:
        """Return the total weight of a batch, a scalar: what the sum of its losses is divided by."""

    def outputs(self, network: Network, batch: Batch) -> Tensor:
        """Run the network: logits [rows, labels] or [completion tokens, vocabulary], or vectors [sequences, hidden]."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of losses, a scalar in float32."""

    def tally(self, outputs: Tensor, batch: Batch) -> Any:
        """Return what `value` needs to know of a batch."""

    def value(self, tallies: Sequence[Any], loss: float) -> float:
        """Return the metric from the tallies of all batches, or from the mean loss."""


class Classification:
    """Cross-entropy against label probabilities; one label a row.

    `smoothing` of each target is shared out among all labels, as by torch's `cross_entropy` (Szegedy et al. 2016).
    """

    metric = "accuracy"
    joint = False

    def __init__(self, smoothing: float = 0.0) -> None:
        self._smoothing = smoothing

    def share(self, batch: Batch) -> Tensor:
        """Return the sum of the rows' weights."""
        return batch.weights.sum()

    def outputs(self, network: Network, batch: Batch) -> Tensor:
        """Return logits [rows, labels]."""
        return network.classify(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over rows."""
        losses = functional.cross_entropy(
            outputs.float(), batch.targets, reduction="none", label_smoothing=self._smoothing
        )
        return (losses * batch.weights).sum()

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return [right rows, rows]."""
        right = (outputs.argmax(-1) == batch.targets.argmax(-1)).sum()
        return torch.stack([right, torch.full_like(right, len(batch.targets))])

    def value(self, tallies: Sequence[Tensor], loss: float) -> float:
        """Return accuracy."""
        right, rows = torch.stack([*tallies]).sum(0).tolist()
        return float(right / rows)


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

    def value(self, tallies: Sequence[Tensor], loss: float) -> float:
        """Return micro-F1; 1 where there is nothing to find and nothing was found."""
        right, false, missed = torch.stack([*tallies]).sum(0).tolist()
        return 2 * right / (2 * right + false + missed) if right + false + missed else 1.0


class Generation:
    """Cross-entropy of the completion's tokens, its EOS included, averaged over all such tokens of a batch."""

    metric = "loss"
    joint = False

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

    def tally(self, outputs: Tensor, batch: Batch) -> Any:
        """Return nothing: the loss is the metric."""

    def value(self, tallies: Sequence[Any], loss: float) -> float:
        """Return the loss a token."""
        return loss


class Preference(Generation):
    """Direct preference optimisation of pairs of completions; `batch.targets` [sequences, 1] are the base's own ρ."""

    metric = "preference_accuracy"

    def __init__(self, beta: float = 0.1) -> None:
        self._beta = beta

    def share(self, batch: Batch) -> Tensor:
        """Return the sum of the rows' weights."""
        return batch.weights[batch.roles == FIRST].sum()

    def log_probabilities(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the log-probability of each completion with its EOS, [sequences]."""
        rows, columns = completion_positions(batch)
        return log_probabilities(outputs, batch.input_ids[rows, columns], rows, len(batch.lengths))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over rows."""
        losses = preference_losses(*self._pairs(outputs, batch), self._beta)
        return (losses * batch.weights[batch.roles == FIRST]).sum()

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return [rows that moved towards the chosen completion, rows]."""
        moved = (margins(*self._pairs(outputs, batch)) > 0).sum()
        return torch.stack([moved, (batch.roles == FIRST).sum()])

    def value(self, tallies: Sequence[Tensor], loss: float) -> float:
        """Return the share of rows whose margin is positive."""
        moved, rows = torch.stack([*tallies]).sum(0).tolist()
        return float(moved / rows)

    def _pairs(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return π and ρ, [rows, 2]: the two sequences of a row follow one another."""
        return self.log_probabilities(outputs, batch).view(-1, 2), batch.targets[:, 0].view(-1, 2)


class Embedding:
    """Contrastive learning: a text's positive is found among all of its batch, and it among all texts."""

    metric = "recall_at_1"
    joint = True

    def __init__(self, temperature: float = 0.05) -> None:
        self._temperature = temperature

    def share(self, batch: Batch) -> Tensor:
        """Return the sum of the rows' weights."""
        return batch.weights[batch.roles == FIRST].sum()

    def outputs(self, network: Network, batch: Batch) -> Tensor:
        """Return vectors [sequences, hidden], of any length."""
        return network.embed(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over rows."""
        losses = contrastive_losses(outputs, batch.roles, batch.keys, self._temperature)
        return (losses * batch.weights[batch.roles == FIRST]).sum()

    def tally(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors, roles and keys: the nearest are looked for among all rows."""
        return unit(outputs.detach()), batch.roles, batch.keys

    def value(self, tallies: Sequence[tuple[Tensor, Tensor, Tensor]], loss: float) -> float:
        """Return recall@1 over the texts of all rows."""
        vectors, roles, keys = (torch.cat(parts) for parts in zip(*tallies, strict=True))
        return recall_at_1(vectors, roles, keys)


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


def objective_for(kind: Kind, settings: Training | None = None) -> Objective:
    """Return the objective of a kind of recipe; `settings` None means the defaults."""
    if kind == "generation":
        return Generation()
    if kind == "preference":
        return Preference(*_given(settings.beta if settings else None))
    if kind == "embedding":
        return Embedding(*_given(settings.contrastive_temperature if settings else None))
    if kind == "multilabel":
        return Multilabel()
    return Classification(*_given(settings.label_smoothing if settings else None))


def _given(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)
