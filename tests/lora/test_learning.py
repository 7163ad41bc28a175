"""Updates of a stack, forward and backward, beside the same by autograd in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from adapterhub.lora.learning import Member, StackPairs, add_lora_by_autograd

IN, OUTS = 6, (4, 3, 5)
# Ranks of each layer of the stack, 0 where it has no pair.
RANKS = [(2, 2, 2), (1, 4, 2), (0, 3, 0), (5, 0, 1), (0, 0, 2), (8, 1, 8)]


@dataclass
class Case:
    """The same pairs twice: leaves for autograd, and a stack."""

    leaves: list[tuple[Tensor, Tensor, float, int]]
    pairs: StackPairs


def make(ranks: tuple[int, ...], *, learns: bool = True) -> Case:
    torch.manual_seed(0)
    leaves, members, scale = [], [], []
    low = first = 0
    for number, (rank, out) in enumerate(zip(ranks, OUTS, strict=True)):
        if rank:
            a = torch.randn(rank, IN, dtype=torch.float64, requires_grad=True)
            b = torch.randn(out, rank, dtype=torch.float64, requires_grad=True)
            leaves.append((a, b, 0.5 + number, first))
            bt = b.detach().T.contiguous()
            members.append(Member(low, low + rank, first, first + out, bt, torch.zeros_like(bt) if learns else None))
            scale += [0.5 + number] * rank
            low += rank
        first += out
    a = torch.cat([leaf[0].detach() for leaf in leaves])
    scales = torch.tensor(scale, dtype=torch.float64)
    return Case(leaves, StackPairs(a, scales, tuple(members), torch.zeros_like(a) if learns else None))


def close(found: Tensor | None, wanted: Tensor | None) -> None:
    assert found is not None
    assert wanted is not None
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("ranks", RANKS)
def test_forward_and_backward_are_those_of_autograd(ranks: tuple[int, ...], rows: int) -> None:
    case = make(ranks)
    x = torch.randn(rows, IN, dtype=torch.float64, requires_grad=True)
    y = torch.randn(rows, sum(OUTS), dtype=torch.float64)
    dy = torch.randn(rows, sum(OUTS), dtype=torch.float64)
    expected = add_lora_by_autograd(y, x, case.leaves)
    expected.backward(dy)

    found, given = y.clone(), x.detach()
    z = case.pairs.add(found, given)
    close(found, expected.detach())
    kept = dy.clone()
    dz = case.pairs.back(dy, z)
    dx = torch.ones_like(given)
    case.pairs.input_gradient(dx, dz)
    case.pairs.add_gradient_of_a(dz, given)
    assert torch.equal(dy, kept)
    close(dx, x.grad + 1)  # type: ignore[operator]  # added to what was there
    close(case.pairs.grad_a, torch.cat([a.grad for a, *_ in case.leaves if a.grad is not None]))
    for member, (_, b, *_) in zip(case.pairs.members, case.leaves, strict=True):
        close(member.grad_bt, None if b.grad is None else b.grad.T)


def test_gradients_of_two_steps_add_up() -> None:
    case = make((2, 0, 3))
    for seed in (1, 2):
        torch.manual_seed(seed)
        x, dy = torch.randn(5, IN, dtype=torch.float64), torch.randn(5, sum(OUTS), dtype=torch.float64)
        add_lora_by_autograd(torch.zeros_like(dy), x, case.leaves).backward(dy)
        z = case.pairs.add(torch.zeros_like(dy), x)
        case.pairs.add_gradient_of_a(case.pairs.back(dy, z), x)
    close(case.pairs.grad_a, torch.cat([a.grad for a, *_ in case.leaves if a.grad is not None]))
    for member, (_, b, *_) in zip(case.pairs.members, case.leaves, strict=True):
        close(member.grad_bt, None if b.grad is None else b.grad.T)


def test_layers_without_a_pair_are_left_alone_bit_for_bit() -> None:
    case = make((0, 3, 0))
    y = torch.randn(4, sum(OUTS), dtype=torch.float64)
    found = y.clone()
    case.pairs.add(found, torch.full((4, IN), torch.inf, dtype=torch.float64))
    assert torch.equal(found[:, :4], y[:, :4])
    assert torch.equal(found[:, 7:], y[:, 7:])


def test_pairs_that_do_not_learn_pass_gradients_through() -> None:
    case, learnt = make((2, 1, 0), learns=False), make((2, 1, 0))
    assert learnt.pairs.learns
    assert not case.pairs.learns
    x, dy = torch.randn(3, IN, dtype=torch.float64), torch.randn(3, sum(OUTS), dtype=torch.float64)
    gradients = []
    for pairs in (case.pairs, learnt.pairs):
        dz, dx = pairs.back(dy, pairs.add(torch.zeros_like(dy), x)), torch.zeros_like(x)
        pairs.input_gradient(dx, dz)
        pairs.add_gradient_of_a(dz, x)
        gradients.append(dx)
    assert torch.equal(*gradients)
    assert case.pairs.grad_a is None


def test_rows_of_a_larger_tensor_are_written_in_place() -> None:
    case = make((2, 2, 2))
    line, x = torch.zeros(9, sum(OUTS), dtype=torch.float64), torch.randn(9, IN, dtype=torch.float64)
    case.pairs.add(line[3:6], x[3:6])
    assert not line[:3].any()
    assert not line[6:].any()
    close(line[3:6], add_lora_by_autograd(torch.zeros_like(line), x, case.leaves).detach()[3:6])
