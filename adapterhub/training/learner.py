"""What the loop asks of an adapter that learns and of the network it learns on; two networks answer it.

`packed/` is the Llama family, where many adapters learn at once; `general.py` is PEFT on any other transformers model,
one adapter at a time, and the reference of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from adapterhub.data.task import Pooling
from adapterhub.lora.config import AdapterConfig

from .rows import Row

if TYPE_CHECKING:
    from .objectives import Objective


class Learner(Protocol):
    """One adapter's parameters, with gradients at `.grad`."""

    @property
    def config(self) -> AdapterConfig:
        """The LoRA settings."""

    @property
    def pooling(self) -> Pooling | None:
        """How the task reads a text, None where it writes."""

    def parameters(self) -> Mapping[str, Tensor]:
        """Return what learns, by name, in float32 or wider."""

    def refresh(self) -> None:
        """Take note that the parameters have changed."""

    def clear(self) -> None:
        """Set the gradients to zero."""

    def saved(self) -> Mapping[str, Tensor]:
        """Return the tensors of the adapter's file under PEFT's names."""

    def random_state(self) -> Tensor:
        """Return the state of the generator that dropout draws from."""

    def set_random_state(self, state: Tensor) -> None:
        """Go on drawing from a state that `random_state` returned."""


@dataclass(frozen=True)
class Turn:
    """What one task puts into the next step: rows of its batch, and the total weight of the whole batch.

    The loss is the sum over the rows divided by `share`, so that parts of a batch, in one process or several, add up.
    """

    learner: Learner
    objective: Objective
    rows: Sequence[Row]
    share: float


@dataclass(frozen=True)
class Judged:
    """What rows came to: the sum of their losses, their total weight, and the objective's tallies."""

    loss: float
    share: float
    tallies: Sequence[Any]


class Network(Protocol):
    """A frozen base with adapters learning on it."""

    dtype: torch.dtype
    device: torch.device
    pads: bool
    """Whether rows of a batch are padded to the longest, so that rows of like length belong together."""

    def learn(self, turns: Sequence[Turn]) -> list[float]:
        """Add the gradients of each turn's loss to its learner's, and return the losses."""

    def judge(self, learner: Learner, objective: Objective, rows: Sequence[Row]) -> Judged:
        """Return what `rows` come to with the adapter as it is, without dropout."""
