from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapterhub.training.evaluate import BestWeights, check_finite

from adapterhub.errors import TrainingError
from adapterhub.training.job import Evaluation


def network(value: float) -> Any:
    return SimpleNamespace(trainable={"a": torch.nn.Parameter(torch.full((2,), value))})


def test_a_higher_metric_wins_then_a_lower_loss() -> None:
    good, close = Evaluation(2, "accuracy", 0.9, 0.5), Evaluation(4, "accuracy", 0.9, 0.4)
    assert good.better_than(None)
    assert good.better_than(Evaluation(1, "accuracy", 0.8, 0.1))
    assert close.better_than(good)
    assert not good.better_than(close)
    assert not good.better_than(good)


def test_for_generation_the_lower_loss_is_better() -> None:
    low, high = Evaluation(2, "loss", 0.2, 0.2), Evaluation(4, "loss", 0.9, 0.9)
    assert low.better_than(high)
    assert not high.better_than(low)


def test_the_best_weights_come_back_whatever_was_learnt_after_them() -> None:
    best, net = BestWeights(), network(0.0)
    for step, (weight, accuracy) in enumerate([(1.0, 0.5), (2.0, 0.8), (3.0, 0.7), (4.0, 0.8)]):
        with torch.no_grad():
            net.trainable["a"].fill_(weight)
        assert best.offer(Evaluation(step, "accuracy", accuracy, 1.0), net) == (step < 2)
    assert best.stale == 2
    assert [e.step for e in best.history] == [0, 1, 2, 3]
    best.restore(net)
    assert net.trainable["a"].tolist() == [2.0, 2.0]


def test_without_evaluations_the_last_weights_stay() -> None:
    net = network(5.0)
    BestWeights().restore(net)
    assert net.trainable["a"].tolist() == [5.0, 5.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_training_with_advice(value: float) -> None:
    with pytest.raises(TrainingError, match=r"the loss became .* at step 9.*lower training\.learning_rate"):
        check_finite(value, "the loss", 9)
    check_finite(1e30, "the loss", 9)
