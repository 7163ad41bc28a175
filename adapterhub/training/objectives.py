"""What is minimised and what is measured, for each kind of task.

Losses are sums over rows (or tokens), and `share` says what to divide by, so a batch cut into parts, however uneven,
has the gradient of the whole. Where a row's loss depends on the other rows (`joint`), `loss` needs the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from adapterhub.recipe import Kind, Training

from .contrast import contrastive_losses, recall_at_1, unit
from .preference import margins, preference_losses
from .rows import FIRST, Batch

Reads = Literal["last", "answers", "all"]
"""Which states a task reads: each sequence's last, those that foretell a completion's tokens, or all."""


class View(Protocol):
    """What an objective may ask of the network about the rows at hand, whichever network it is."""

    def classify(self, batch: Any) -> Tensor:
        """Return logits [rows, labels]."""

    def answer_logprobs(self, batch: Any) -> Tensor:
        """Return the log-probability of each token of the completions, as `batch.answer_owners` has them."""

    def embed(self, batch: Any) -> Tensor:
        """Return a pooled vector a sequence, [sequences, hidden]."""


class Objective(Protocol):
    """One kind of task."""

    metric: str
    """The name of the value that validation is judged by."""

    joint: bool
    """Whether the loss of a row depends on the other rows of its batch."""

    reads: Reads
    """Which states of a sequence it needs."""

    def share(self, batch: Batch) -> Tensor:
        """Return the total weight of a batch, a scalar: what the sum of its losses is divided by."""

    def outputs(self, view: View, batch: Batch) -> Tensor:
        """Ask the network: logits [rows, labels], log-probabilities [answer tokens] or vectors [sequences, hidden]."""

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
    reads: Reads = "last"

    def __init__(self, smoothing: float = 0.0) -> None:
        self._smoothing = smoothing

    def share(self, batch: Batch) -> Tensor:
        """Return the sum of the rows' weights."""
        return batch.weights.sum()

    def outputs(self, view: View, batch: Batch) -> Tensor:
        """Return logits [rows, labels]."""
        return view.classify(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over rows."""
        wide = _wide(outputs)
        losses = functional.cross_entropy(
            wide, batch.targets.to(wide.dtype), reduction="none", label_smoothing=self._smoothing
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
        wide = _wide(outputs)
        losses = functional.binary_cross_entropy_with_logits(wide, batch.targets.to(wide.dtype), reduction="none")
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
    reads: Reads = "answers"

    def share(self, batch: Batch) -> Tensor:
        """Return the number of completion tokens, each counted with its row's weight."""
        return ((batch.lengths - batch.starts) * batch.weights).sum()

    def outputs(self, view: View, batch: Batch) -> Tensor:
        """Return the log-probability of each token of the completions."""
        return view.answer_logprobs(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over completion tokens."""
        return -(outputs * batch.weights[batch.answer_owners]).sum()

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
        return outputs.new_zeros(len(batch.lengths)).index_add(0, batch.answer_owners, outputs)

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
    reads: Reads = "all"

    def __init__(self, temperature: float = 0.05) -> None:
        self._temperature = temperature

    def share(self, batch: Batch) -> Tensor:
        """Return the sum of the rows' weights."""
        return batch.weights[batch.roles == FIRST].sum()

    def outputs(self, view: View, batch: Batch) -> Tensor:
        """Return vectors [sequences, hidden], of any length."""
        return view.embed(batch)

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


def _wide(outputs: Tensor) -> Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


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
