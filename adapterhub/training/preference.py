"""Direct preference optimisation: two completions of one prompt, of which the first shall become the likelier one.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023, eq. 7.
All on plain tensors: π is what the adapter gives a completion, ρ what the base alone gives it, both log-probabilities.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def margins(policy: Tensor, reference: Tensor) -> Tensor:
    """Return (π_c − ρ_c) − (π_r − ρ_r), [rows].

    Both are [rows, 2]: chosen, rejected. Above 0 the adapter has moved towards the chosen completion.
    """
    gained = policy - reference
    return gained[:, 0] - gained[:, 1]


def preference_losses(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return −log σ(β · margin), [rows]; `beta` says how dearly it is bought to move away from the base."""
    return -functional.logsigmoid(beta * margins(policy, reference))
