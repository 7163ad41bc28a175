"""The temperature against a search that looks everywhere, and where there is none."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.metrics import calibration_error
from adapterhub.pipeline.temperature import confidences, expected, fit_temperature, loss, slope

Kind = Literal["classification", "multilabel"]
KINDS: tuple[Kind, ...] = ("classification", "multilabel")


def draw(kind: Kind, rows: int, labels: int, seed: int, hotter: float = 1.0) -> tuple[Any, Any]:
    """Return logits [rows, labels], and targets drawn from what they say at temperature `hotter`."""
    dice = np.random.default_rng(seed)
    logits = dice.normal(size=(rows, labels)) * 2
    if kind == "multilabel":
        return logits * hotter, (dice.random((rows, labels)) < 1 / (1 + np.exp(-logits))).astype(float)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return logits * hotter, np.stack([dice.multinomial(1, chance) for chance in chances]).astype(float)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hotter", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_put_in_is_found(kind: Kind, hotter: float) -> None:
    logits, targets = draw(kind, 4000, 5, 0, hotter)
    fit = fit_temperature(logits, targets, np.ones(4000), kind)
    assert fit.temperature == pytest.approx(hotter, rel=0.06)
    assert "fitted on 4000 validation rows: negative log-likelihood" in fit.reason


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(10, 60), st.integers(2, 6), st.integers(0, 10**6), st.floats(0.2, 6))
def test_no_temperature_of_a_fine_grid_is_better(kind: Kind, rows: int, labels: int, seed: int, hotter: float) -> None:
    logits, targets = draw(kind, rows, labels, seed, hotter)
    dice = np.random.default_rng(seed)
    soft = targets * 0.8 + 0.2 / labels if seed % 2 else targets
    weights = dice.random(rows) + 0.1
    fit = fit_temperature(logits, soft, weights, kind)
    grid = np.geomspace(0.05, 20, 400)
    best = min(loss(logits, soft, weights, kind, each) for each in grid)
    if fit.reason.startswith("fitted"):
        # Three digits of it are kept, and the likelihood is flat there.
        assert loss(logits, soft, weights, kind, fit.temperature) <= best + 1e-4
    else:
        assert fit.temperature == 1.0
        assert best in (loss(logits, soft, weights, kind, edge) for edge in (grid[0], grid[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_slope_are_those_of_torch(kind: Kind) -> None:
    logits, targets = draw(kind, 30, 4, 1)
    targets = targets * 0.7 + 0.3 / 4
    weights = np.linspace(0.5, 2, 30)
    inverse = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    scaled, wanted = torch.tensor(logits) * inverse, torch.tensor(targets)
    if kind == "multilabel":
        each = torch.nn.functional.binary_cross_entropy_with_logits(scaled, wanted, reduction="none").sum(1)
    else:
        each = torch.nn.functional.cross_entropy(scaled, wanted, reduction="none")
    mean = (each * torch.tensor(weights)).sum() / weights.sum()
    mean.backward()
    assert loss(logits, targets, weights, kind, 1 / 1.7) == pytest.approx(mean.item(), abs=1e-12)
    assert inverse.grad is not None
    assert slope(logits, targets, weights, kind, 1.7) == pytest.approx(inverse.grad.item(), abs=1e-12)


def test_weights_count_as_repeated_rows() -> None:
    logits, targets = draw("classification", 60, 3, 2)
    weights = np.where(np.arange(60) % 3 == 0, 3.0, 1.0)
    rows = np.repeat(np.arange(60), weights.astype(int))
    weighted = fit_temperature(logits, targets, weights, "classification")
    assert (
        weighted.temperature == fit_temperature(logits[rows], targets[rows], np.ones(100), "classification").temperature
    )


def test_too_sure_answers_become_calibrated_ones() -> None:
    logits, targets = draw("classification", 3000, 4, 3, hotter=5.0)
    right = (logits.argmax(1) == targets.argmax(1))[1500:].tolist()
    temperature = fit_temperature(logits[:1500], targets[:1500], np.ones(1500), "classification").temperature
    sure = [confidences(logits[1500:], each).tolist() for each in (1.0, temperature)]
    before, after = (calibration_error(each, right).value for each in sure)
    assert before > 0.15
    assert after < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_is_right_there_is_no_best_temperature(kind: Kind) -> None:
    logits, _ = draw(kind, 50, 3, 4)
    targets = (logits == logits.max(1, keepdims=True)) if kind == "classification" else (logits > 0)
    fit = fit_temperature(logits, targets.astype(float), np.ones(50), kind)
    assert (fit.temperature, fit.reason) == (
        1.0,
        "not fitted: all 50 validation rows are answered rightly, and then every lower temperature fits better",
    )


@pytest.mark.parametrize(
    ("rows", "said"), [(0, "no validation rows"), (1, "1 validation row, and"), (9, "9 validation rows, and")]
)
def test_too_few_rows_decide_nothing(rows: int, said: str) -> None:
    fit = fit_temperature(np.ones((rows, 2)), np.ones((rows, 2)) / 2, np.ones(rows), "classification")
    assert fit.temperature == 1.0
    assert said in fit.reason


def test_answers_that_say_nothing_stay_as_they_are() -> None:
    logits, targets = draw("classification", 50, 3, 5)
    wrong = np.eye(3)[logits.argmin(1)]
    fit = fit_temperature(logits, wrong, np.ones(50), "classification")
    assert fit.temperature == 1.0
    assert "say nothing about what is right" in fit.reason
    assert fit_temperature(logits / 1e6, targets, np.ones(50), "classification").temperature == 1.0
    alike = fit_temperature(np.ones((50, 3)), targets, np.ones(50), "classification")
    assert alike.temperature == 1.0
    assert "lies below 0.05" in alike.reason


def test_large_logits_are_no_trouble() -> None:
    logits, targets = draw("classification", 50, 3, 6)
    with np.errstate(all="raise", under="ignore"):
        for kind in KINDS:
            fit_temperature(logits * 1e6, targets, np.ones(50), kind)
            assert np.isfinite(expected(logits * 1e6, targets, kind, 20.0)).all()


def test_confidences_are_the_highest_probabilities() -> None:
    logits, _ = draw("classification", 20, 4, 7)
    wanted = torch.softmax(torch.tensor(logits, dtype=torch.float32) / 1.3, -1).max(-1).values
    assert confidences(logits, 1.3) == pytest.approx(wanted.numpy(), abs=1e-6)
