"""The contrastive loss beside a slow reference, by itself and through a network."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapterhub.base.features import pool
from adapterhub.data.task import FEATURE_POOLINGS
from adapterhub.training.contrast import contrastive_losses, recall_at_1
from adapterhub.training.objectives import Embedding, objective_for
from adapterhub.training.parts import Limits, accumulate, outputs_of, parts_of
from adapterhub.training.rows import FIRST, NEGATIVE, SECOND, Row, collate
from tests.training.jobs import make_recipe
from tests.training.test_general import network_of

CPU = torch.device("cpu")

# Rows of (text, positive, negative or None): repeated positives, a text with two positives, a negative that is right.
TEXTS = [(1, 10, 50), (2, 10, None), (3, 11, 12), (3, 13, None), (4, 12, 11), (5, 14, 50)]


def flat(rows: list[tuple[int, int, int | None]]) -> tuple[Tensor, Tensor]:
    """Return roles and keys as a batch has them."""
    sequences = [(role, key) for row in rows for role, key in enumerate(row) if key is not None]
    return torch.tensor([role for role, _ in sequences]), torch.tensor([key for _, key in sequences])


def vectors_of(keys: Tensor, hidden: int = 6, seed: int = 0) -> Tensor:
    """Return a random vector for each key: equal texts have equal vectors."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(100, hidden, generator=generator, dtype=torch.float64) * 3
    return table[keys]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def slow_losses(vectors: Tensor, rows: list[tuple[int, int, int | None]], temperature: float) -> list[float]:
    """Both directions by the definition: the own one against itself and all that is wrong."""
    by_key = dict(zip(flat(rows)[1].tolist(), vectors, strict=True))
    candidates = [positive for _, positive, _ in rows] + [negative for *_, negative in rows if negative is not None]
    losses = []
    for text, positive, _ in rows:
        right = {p for t, p, _ in rows if t == text}
        own = math.exp(cosine(by_key[text], by_key[positive]) / temperature)
        wrong = [math.exp(cosine(by_key[text], by_key[c]) / temperature) for c in candidates if c not in right]
        others = [
            math.exp(cosine(by_key[positive], by_key[t]) / temperature)
            for t, _, _ in rows
            if positive not in {p for other, p, _ in rows if other == t}
        ]
        losses.append((-math.log(own / (own + sum(wrong))) - math.log(own / (own + sum(others)))) / 2)
    return losses


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("rows", [TEXTS, TEXTS[:1], [(1, 10, None), (2, 11, None)], [(1, 10, None), (1, 10, None)]])
def test_losses_are_those_of_the_definition(rows: list[tuple[int, int, int | None]], temperature: float) -> None:
    roles, keys = flat(rows)
    found = contrastive_losses(vectors_of(keys), roles, keys, temperature)
    assert found.tolist() == pytest.approx(slow_losses(vectors_of(keys), rows, temperature), abs=1e-9)


def test_random_batches_agree_too() -> None:
    dice = random.Random(0)
    for seed in range(20):
        rows = [(dice.randrange(9), 10 + dice.randrange(6), dice.choice([None, 20, 21, 12])) for _ in range(12)]
        roles, keys = flat(rows)
        found = contrastive_losses(vectors_of(keys, seed=seed), roles, keys, 0.2)
        assert found.tolist() == pytest.approx(slow_losses(vectors_of(keys, seed=seed), rows, 0.2), abs=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    roles, keys = flat(TEXTS)
    torch.manual_seed(0)
    vectors = torch.randn(len(keys), 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: contrastive_losses(each, roles, keys, 0.3), (vectors,))


def test_length_does_not_count_and_low_precision_is_widened() -> None:
    roles, keys = flat(TEXTS)
    vectors = vectors_of(keys).float()
    found = contrastive_losses(vectors, roles, keys, 0.1)
    torch.testing.assert_close(contrastive_losses(vectors * 7, roles, keys, 0.1), found)
    assert contrastive_losses(vectors.bfloat16(), roles, keys, 0.1).dtype == torch.float32


def test_recall_is_the_share_of_texts_whose_nearest_is_right() -> None:
    roles, keys = flat(TEXTS)
    for seed in range(10):
        vectors = vectors_of(keys, seed=seed)
        by_key = dict(zip(keys.tolist(), vectors, strict=True))
        pool_keys = {key for role, key in zip(roles.tolist(), keys.tolist(), strict=True) if role != FIRST}
        hits = 0
        for text, positive, _ in TEXTS:
            right = {p for t, p, _ in TEXTS if t == text}
            own = cosine(by_key[text], by_key[positive])
            hits += all(cosine(by_key[text], by_key[key]) < own for key in pool_keys - right)
        assert recall_at_1(vectors, roles, keys) == pytest.approx(hits / len(TEXTS))
    # Vectors that are all alike tell nothing apart.
    assert recall_at_1(torch.ones(len(keys), 4), roles, keys) == 0.0


def row(text: tuple[int, ...], *others: tuple[int, ...], weight: float = 1.0) -> Row:
    return Row(text, len(text), (), weight, "", tuple(Row(each, len(each), (), weight, "") for each in others))


ROWS = [
    row((11, 12, 13), (20, 21), (40, 41)),
    row((14,), (22, 23, 24, 25), weight=2.0),
    row((15, 16), (20, 21), weight=0.5),
    row((17, 18), (26,), (22, 23, 24, 25)),
]


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_a_networks_vectors_are_the_pooled_states_of_each_text_alone(tmp_path: Path, family: str) -> None:
    network = network_of(tmp_path, family, kind="embedding")
    assert network.pooling == "mean"
    batch = collate(ROWS, 0, CPU)
    assert batch.roles.tolist() == [FIRST, SECOND, NEGATIVE, FIRST, SECOND, FIRST, SECOND, FIRST, SECOND, NEGATIVE]
    assert batch.keys[1] == batch.keys[6]
    assert batch.keys[4] == batch.keys[9]
    assert len(set(batch.keys.tolist())) == 8
    for pooling in FEATURE_POOLINGS:
        object.__setattr__(network, "pooling", pooling)
        with torch.no_grad():
            found = network.embed(batch)
            sequences = [each for each_row in ROWS for each in each_row.sequences]
            for vector, each in zip(found, sequences, strict=True):
                states = network.model(input_ids=torch.tensor([each.ids]))[0][0]
                torch.testing.assert_close(vector, pool(states, pooling), rtol=1e-4, atol=1e-5)


def test_nothing_but_lora_matrices_learns_and_names_have_no_root(tmp_path: Path) -> None:
    network = network_of(tmp_path, kind="embedding")
    names = set(network.saved())
    assert "base_model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert all(".lora_" in name for name in names)
    assert (network.config.task_type, network.config.layers, network.config.modules_to_save) == (
        "FEATURE_EXTRACTION",
        None,
        (),
    )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_parts_have_the_gradient_of_the_whole_batch_and_the_same_dropout(tmp_path: Path, dropout: float) -> None:
    network = network_of(tmp_path, kind="embedding", lora={"dropout": dropout})
    settings = make_recipe("embedding", training={"contrastive_temperature": 0.2}).training
    objective = objective_for("embedding", settings)
    small = Limits(4, 14, 0)
    assert len(parts_of(ROWS, small, CPU)) > 1
    network.model.train()
    # The whole, computed from the parts' vectors in one graph.
    torch.manual_seed(3)
    whole = collate(ROWS, 0, CPU)
    vectors = torch.cat([objective.outputs(network, part) for part in parts_of(ROWS, small, CPU)])
    expected = objective.loss(vectors, whole) / objective.share(whole)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in network.parameters().items() if p.grad is not None}
    network.model.zero_grad()
    torch.manual_seed(3)
    share = float(objective.share(whole))
    loss = accumulate(network, objective, ROWS, share, small, CPU)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(network.parameters()[name].grad, gradient, rtol=1e-4, atol=1e-6)
    if not dropout:  # and in one padded batch it is the same
        network.model.zero_grad()
        assert accumulate(network, objective, ROWS, share, Limits(4, 1000, 0), CPU) == pytest.approx(loss)
        for name, gradient in gradients.items():
            torch.testing.assert_close(network.parameters()[name].grad, gradient, rtol=1e-3, atol=1e-5)


def test_recall_is_over_the_rows_of_all_batches(tmp_path: Path) -> None:
    network = network_of(tmp_path, kind="embedding")
    objective = Embedding()
    with torch.no_grad():
        values = []
        for cut in (4, 2, 1):
            tallies = [
                objective.tally(outputs, batch)
                for start in range(0, 4, cut)
                for outputs, batch in outputs_of(network, objective, ROWS[start : start + cut], Limits(4, 9, 0), CPU)
            ]
            values.append(objective.value(tallies, 0.0))
    assert values[0] == values[1] == values[2]
