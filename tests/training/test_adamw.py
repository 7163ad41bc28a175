"""Our AdamW against torch's own, step by step and bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterhub.training.adamw import AdamW, Group

SHAPES = [(5, 3), (7,), (4, 4), (2,)]


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in SHAPES]


def test_steps_are_those_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    found = AdamW([Group(ours[:2], 0.1, 1.0, 0.01), Group(ours[2:], 0.0, 8.0, 0.01)])
    groups = [{"params": theirs[:2], "weight_decay": 0.1, "ratio": 1.0}]
    groups += [{"params": theirs[2:], "weight_decay": 0.0, "ratio": 8.0}]
    expected = torch.optim.AdamW(groups, lr=0.01, fused=True)
    for step in range(12):
        rate = 0.01 / (step + 1)
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            # The second has a gradient now and then, the last never.
            gradient = None if i == 3 or (i == 1 and step % 3) else torch.randn(mine.shape) * 10.0 ** (step - 6)
            mine.grad, other.grad = gradient, None if gradient is None else gradient.clone()
        for group in found.groups:
            group.lr = rate * group.ratio
        for each in expected.param_groups:
            each["lr"] = rate * each["ratio"]
        found.step()
        expected.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other)
            state, known = found.state.get(mine, {}), expected.state.get(other, {})
            assert state.keys() == known.keys()
            assert all(
                torch.equal(state[name], known[name]) and state[name].dtype == known[name].dtype for name in state
            )
    assert torch.equal(ours[3], parameters()[3])
    assert not torch.equal(ours[1], parameters()[1])
