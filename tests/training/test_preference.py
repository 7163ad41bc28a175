"""The preference loss beside a slow reference, by itself and through a network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapterhub.training.network import Network
from adapterhub.training.objectives import Preference, objective_for
from adapterhub.training.parts import Limits, accumulate
from adapterhub.training.preference import log_probabilities, margins, preference_losses
from adapterhub.training.reference import with_references
from adapterhub.training.rows import Row, collate
from tests.training.jobs import make_recipe
from tests.training.test_network import network_of

CPU = torch.device("cpu")
END = 2
LIMITS = Limits(batch_size=4, max_tokens=1000, pad_token_id=0)


def pair(prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...], weight: float = 1.0) -> Row:
    """Return what encode_rows makes of a preference."""
    first, other = (Row((*prompt, *each, END), len(prompt), (), weight, "") for each in (chosen, rejected))
    return replace(first, others=(other,))


ROWS = [
    pair((11, 12, 13), (20, 21), (30,)),
    pair((14,), (22,), (31, 32, 33, 34), weight=2.0),
    pair((15, 16), (23, 24, 25), (), weight=0.5),
]


@torch.no_grad()
def slow_log_probability(network: Network, row: Row) -> float:
    """Sum the completion's log-probabilities, one sequence and one token at a time."""
    logits = network.model(input_ids=torch.tensor([row.ids])).logits[0].double()
    return sum(float(logits[at - 1].log_softmax(-1)[row.ids[at]]) for at in range(row.start, len(row.ids)))


def slow_loss(network: Network, rows: list[Row], beta: float) -> tuple[float, int]:
    """Return the weighted mean loss and how many margins are positive, row by row."""
    total, moved = 0.0, 0
    for row in rows:
        after = [slow_log_probability(network, each) for each in row.sequences]
        with network.without_adapter():
            before = [slow_log_probability(network, each) for each in row.sequences]
        margin = (after[0] - before[0]) - (after[1] - before[1])
        total += row.weight * math.log1p(math.exp(-beta * margin))
        moved += margin > 0
    return total / sum(row.weight for row in rows), moved


def test_losses_are_those_of_the_paper_row_by_row() -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(5, 2).double() * 9 - 20, torch.randn(5, 2).double() * 9 - 20
    for beta in (0.1, 0.5):
        for row, loss in enumerate(preference_losses(policy, reference, beta)):
            gained = [float(policy[row, side] - reference[row, side]) for side in (0, 1)]
            assert float(margins(policy, reference)[row]) == pytest.approx(gained[0] - gained[1])
            assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-beta * (gained[0] - gained[1])))))


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    tokens, sequences = torch.tensor([0, 5, 2, 2, 1, 3, 4]), torch.tensor([0, 0, 0, 1, 2, 3, 3])
    reference = torch.randn(2, 2, dtype=torch.float64)

    def loss(values: Tensor) -> Tensor:
        return preference_losses(log_probabilities(values, tokens, sequences, 4).view(2, 2), reference, 0.3)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_a_sequence_has_the_sum_of_its_tokens(tmp_path: Path) -> None:
    logits = torch.randn(4, 5)
    found = log_probabilities(logits.bfloat16(), torch.tensor([1, 2, 3, 4]), torch.tensor([0, 2, 2, 0]), 3)
    each = logits.bfloat16().float().log_softmax(-1)[torch.arange(4), torch.tensor([1, 2, 3, 4])]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([each[0] + each[3], torch.tensor(0.0), each[1] + each[2]]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_and_accuracy_through_a_network_equal_a_row_by_row_reference(tmp_path: Path, family: str) -> None:
    network = network_of(tmp_path, family, kind="generation")
    objective = objective_for("preference", make_recipe("preference", training={"beta": 0.25}).training)
    assert isinstance(objective, Preference)
    told = with_references(network, objective, ROWS, LIMITS, CPU)
    with torch.no_grad():
        expected, moved = slow_loss(network, ROWS, 0.25)
        batch = collate(told, 0, CPU)
        outputs = objective.outputs(network, batch)
        assert float(objective.loss(outputs, batch) / objective.share(batch)) == pytest.approx(expected, rel=1e-4)
        assert objective.tally(outputs, batch).tolist() == [moved, 3]
        assert objective.value([objective.tally(outputs, batch)] * 2, 0.0) == pytest.approx(moved / 3)
    assert 0 < moved < 3 or family != "llama"  # so that the count says something


@pytest.mark.parametrize("limits", [LIMITS, Limits(2, 1000, 0), Limits(4, 6, 0)])
def test_references_are_the_bases_and_do_not_depend_on_batches(tmp_path: Path, limits: Limits) -> None:
    network = network_of(tmp_path, kind="generation", lora={"dropout": 0.5})
    network.model.train()
    told = with_references(network, Preference(), ROWS, limits, CPU)
    assert network.model.training
    network.model.eval()
    with torch.no_grad(), network.without_adapter():
        for row in told:
            for each in row.sequences:
                assert each.target[0] == pytest.approx(slow_log_probability(network, each), rel=1e-5)
    assert [(row.ids, row.weight, [o.ids for o in row.others]) for row in told] == [
        (row.ids, row.weight, [o.ids for o in row.others]) for row in ROWS
    ]


def test_an_untrained_adapter_prefers_nothing(tmp_path: Path) -> None:
    network = network_of(tmp_path, kind="generation")
    with torch.no_grad():
        for name, parameter in network.trainable.items():
            if "lora_B" in name:
                parameter.zero_()
    objective = Preference()
    batch = collate(with_references(network, objective, ROWS, LIMITS, CPU), 0, CPU)
    with torch.no_grad():
        outputs = objective.outputs(network, batch)
    assert float(objective.loss(outputs, batch) / objective.share(batch)) == pytest.approx(math.log(2), rel=1e-4)


def test_parts_have_the_gradient_of_the_whole(tmp_path: Path) -> None:
    network = network_of(tmp_path, kind="generation")
    objective = Preference()
    rows = with_references(network, objective, ROWS, LIMITS, CPU)
    gradients = []
    for limits in (LIMITS, Limits(4, 5, 0)):
        network.model.zero_grad()
        loss, tokens = accumulate(network, objective, rows, limits, CPU, Tensor.backward)
        gradients.append({name: p.grad.clone() for name, p in network.trainable.items() if p.grad is not None})
        assert tokens == sum(len(each.ids) for row in rows for each in row.sequences)
        assert loss == pytest.approx(slow_loss(network, rows, 0.1)[0], rel=1e-4)
    whole, parts = gradients
    assert whole
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)
