"""The preference loss beside a slow reference, by itself and through a network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapterhub.training.general import GeneralNetwork, PeftLearner
from adapterhub.training.objectives import Preference, objective_for
from adapterhub.training.parts import Limits, accumulate
from adapterhub.training.preference import margins, preference_losses
from adapterhub.training.rows import Row, batch_of, collate
from adapterhub.training.train import _with_references
from tests.training.jobs import make_recipe
from tests.training.test_general import network_of

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
def slow_log_probability(network: PeftLearner, row: Row) -> float:
    """Sum the completion's log-probabilities, one sequence and one token at a time."""
    logits = network.model(input_ids=torch.tensor([row.ids])).logits[0].double()
    return sum(float(logits[at - 1].log_softmax(-1)[row.ids[at]]) for at in range(row.start, len(row.ids)))


def with_references(network: PeftLearner, batch_size: int = 4) -> list[Row]:
    return _with_references(GeneralNetwork(network, 0, batch_size, CPU), network, ROWS)


def slow_loss(network: PeftLearner, rows: list[Row], beta: float) -> tuple[float, int]:
    """Return the weighted mean loss and how many margins are positive, row by row."""
    total, moved = 0.0, 0
    for row in rows:
        after = [slow_log_probability(network, each) for each in row.sequences]
        with network.model.disable_adapter():
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
    told = [replace(row, target=(-2.0,), others=(replace(row.others[0], target=(-3.5,)),)) for row in ROWS]
    batch, objective = batch_of(told, CPU), Preference(0.3)
    torch.manual_seed(0)
    likely = torch.randn(len(batch.answer_owners), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: objective.loss(values, batch), (likely,))


def test_a_sequence_has_the_sum_of_its_tokens() -> None:
    batch = batch_of(ROWS[:2], CPU)
    counts = [3, 2, 2, 5]  # tokens of the completions, their ends among them
    assert batch.answer_owners.tolist() == [i for i, count in enumerate(counts) for _ in range(count)]
    values = torch.randn(12)
    found = Preference().log_probabilities(values, batch)
    torch.testing.assert_close(found, torch.stack([part.sum() for part in values.split(counts)]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_and_accuracy_through_a_network_equal_a_row_by_row_reference(tmp_path: Path, family: str) -> None:
    network = network_of(tmp_path, family, kind="generation")
    objective = objective_for("preference", make_recipe("preference", training={"beta": 0.25}).training)
    assert isinstance(objective, Preference)
    told = with_references(network)
    with torch.no_grad():
        expected, moved = slow_loss(network, ROWS, 0.25)
        batch = collate(told, 0, CPU)
        outputs = objective.outputs(network, batch)
        assert float(objective.loss(outputs, batch) / objective.share(batch)) == pytest.approx(expected, rel=1e-4)
        assert objective.tally(outputs, batch).tolist() == [moved, 3]
        assert objective.value([objective.tally(outputs, batch)] * 2, 0.0) == pytest.approx(moved / 3)
    assert 0 < moved < 3 or family != "llama"  # so that the count says something


@pytest.mark.parametrize(("size", "tokens"), [(4, 1000), (2, 1000), (4, 6)])
def test_references_are_the_bases_and_do_not_depend_on_batches(
    tmp_path: Path, size: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.training.general.PART_TOKENS", tokens)
    network = network_of(tmp_path, kind="generation", lora={"dropout": 0.5})
    network.model.train()
    told = with_references(network, size)
    assert network.model.training
    network.model.eval()
    with torch.no_grad(), network.model.disable_adapter():
        for row in told:
            for each in row.sequences:
                assert each.target[0] == pytest.approx(slow_log_probability(network, each), rel=1e-5)
    assert [(row.ids, row.weight, [o.ids for o in row.others]) for row in told] == [
        (row.ids, row.weight, [o.ids for o in row.others]) for row in ROWS
    ]


def test_an_untrained_adapter_prefers_nothing(tmp_path: Path) -> None:
    network = network_of(tmp_path, kind="generation")
    with torch.no_grad():
        for name, parameter in network.parameters().items():
            if "lora_B" in name:
                parameter.zero_()
    objective = Preference()
    batch = collate(with_references(network), 0, CPU)
    with torch.no_grad():
        outputs = objective.outputs(network, batch)
    assert float(objective.loss(outputs, batch) / objective.share(batch)) == pytest.approx(math.log(2), rel=1e-4)


def test_parts_have_the_gradient_of_the_whole(tmp_path: Path) -> None:
    network = network_of(tmp_path, kind="generation")
    objective = Preference()
    rows = with_references(network)
    share = float(objective.share(batch_of(rows, CPU)))
    gradients = []
    for limits in (LIMITS, Limits(4, 5, 0)):
        network.model.zero_grad()
        loss = accumulate(network, objective, rows, share, limits, CPU)
        gradients.append({name: p.grad.clone() for name, p in network.parameters().items() if p.grad is not None})
        assert loss == pytest.approx(slow_loss(network, rows, 0.1)[0], rel=1e-4)
    whole, parts = gradients
    assert whole
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)
