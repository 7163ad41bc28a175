"""What the base alone gives each completion of a preference: computed once, since the base is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .batches import ordered_batches
from .network import Network
from .objectives import Preference
from .parts import Limits, outputs_of
from .rows import Row


@torch.no_grad()
def with_references(
    network: Network, objective: Preference, rows: Sequence[Row], limits: Limits, device: torch.device
) -> list[Row]:
    """Return `rows`, each sequence with the log-probability of its completion as target; adapter and dropout off."""
    found: list[Row] = list(rows)
    training = network.model.training
    network.model.eval()
    with network.without_adapter():
        for indices in ordered_batches([row.length for row in rows], limits.batch_size):
            told = [
                value
                for outputs, batch in outputs_of(network, objective, [rows[i] for i in indices], limits, device)
                for value in objective.log_probabilities(outputs, batch).tolist()
            ]
            for index, pair in zip(indices, zip(told[::2], told[1::2], strict=True), strict=True):
                found[index] = _told(rows[index], *pair)
    network.model.train(training)
    return found


def _told(row: Row, chosen: float, rejected: float) -> Row:
    (other,) = row.others
    return replace(row, target=(chosen,), others=(replace(other, target=(rejected,)),))
