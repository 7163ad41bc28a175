"""AdamW by torch's own step, without `torch.optim.Optimizer`: making one imports torch's compiler, a second or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# As torch.optim.AdamW has them.
_BETAS, _EPS = (0.9, 0.999), 1e-8


@dataclass
class Group:
    """Parameters that learn alike: at `ratio` times the run's rate, which `lr` is set to, with so much decay."""

    params: list[Tensor]
    weight_decay: float
    ratio: float
    lr: float


@dataclass
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), what `torch.optim.AdamW(fused=True)` does.

    `state` has `step`, `exp_avg` and `exp_avg_sq` of each parameter that took a step.
    """

    groups: Sequence[Group]
    state: dict[Tensor, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.groups:
            moving = [parameter for parameter in group.params if parameter.grad is not None]
            states = [self._state(parameter) for parameter in moving]
            adamw(
                moving,
                [parameter.grad for parameter in moving if parameter.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                lr=group.lr,
                weight_decay=group.weight_decay,
                eps=_EPS,
                maximize=False,
            )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]
