"""Judging an adapter on validation rows while it is trained, and keeping the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapterhub.errors import TrainingError

from .batches import ordered_batches
from .job import Evaluation
from .network import Network
from .objectives import Objective
from .parts import Limits as Limits
from .parts import outputs_of
from .rows import Row


@torch.no_grad()
def evaluate(
    network: Network, objective: Objective, rows: Sequence[Row], limits: Limits, device: torch.device, step: int
) -> Evaluation:
    """Return metric and mean loss over all `rows`; raises TrainingError where the loss is not finite."""
    network.model.eval()
    tallies: list[Any] = []
    loss = share = 0.0
    for indices in ordered_batches([row.length for row in rows], limits.batch_size):
        for outputs, batch in outputs_of(network, objective, [rows[i] for i in indices], limits, device):
            loss += float(objective.loss(outputs, batch))
            share += float(objective.share(batch))
            tallies.append(objective.tally(outputs, batch))
    network.model.train()
    mean = loss / share
    check_finite(mean, "the loss on validation", step)
    return Evaluation(step, objective.metric, objective.value(tallies, mean), mean)


def check_finite(value: float, what: str, step: int) -> None:
    """Raise TrainingError for NaN or infinity, with advice."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} became {value} at step {step}, so training stopped and nothing was published; "
            "set a lower training.learning_rate (a third of it, say) or a longer training.warmup"
        )


@dataclass
class BestWeights:
    """The weights with the best evaluation so far, copied; and how many evaluations ago that was."""

    evaluation: Evaluation | None = None
    stale: int = 0
    history: list[Evaluation] = field(default_factory=list)
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, evaluation: Evaluation, network: Network) -> bool:
        """Note an evaluation; copy the weights and return True where it is the best so far."""
        self.history.append(evaluation)
        if not evaluation.better_than(self.evaluation):
            self.stale += 1
            return False
        self.evaluation, self.stale = evaluation, 0
        self._tensors = {name: p.detach().clone() for name, p in network.trainable.items()}
        return True

    @torch.no_grad()
    def restore(self, network: Network) -> None:
        """Put the best weights back; without any evaluation the last ones stay."""
        for name, parameter in network.trainable.items():
            if name in self._tensors:
                parameter.copy_(self._tensors[name])
