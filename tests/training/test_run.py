"""One adapter in training: its steps, what counts as trouble, the best weights, and snapshots of it all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from adapterhub.errors import TrainingError
from adapterhub.training.job import Evaluation
from adapterhub.training.learner import Judged
from adapterhub.training.objectives import Classification
from adapterhub.training.rows import Row
from adapterhub.training.run import SLOWER, Run, Snapshot, check_finite, make_optimizer
from tests.training.jobs import make_recipe

ROWS = [Row(tuple(range(10, 12 + i % 3)), 2 + i % 3, (1.0, 0.0), 1.0, "") for i in range(10)]


class Weights:
    """A learner of two plain tensors, one of which is a B matrix."""

    config: Any = None
    pooling = None

    def __init__(self, value: float = 0.0) -> None:
        self.tensors = {name: torch.full((3,), value, requires_grad=True) for name in ("a", "b")}
        self.generator = torch.Generator().manual_seed(0)
        self.refreshed = 0
        self.clear()

    def parameters(self) -> Mapping[str, Tensor]:
        return self.tensors

    def refresh(self) -> None:
        self.refreshed += 1

    def clear(self) -> None:
        for tensor in self.tensors.values():
            tensor.grad = torch.zeros_like(tensor)

    def saved(self) -> Mapping[str, Tensor]:
        return self.tensors

    def random_state(self) -> Tensor:
        return self.generator.get_state()

    def set_random_state(self, state: Tensor) -> None:
        self.generator.set_state(state)


def run_of(value: float = 0.0, validation: int = 4, **training: Any) -> Run:
    settings = make_recipe(training={"steps": 60, "batch_size": 4, **training}).training
    return Run("toy", Weights(value), Classification(), ROWS, ROWS[:validation], settings, pads=False)


def step(run: Run, loss: float = 1.0, gradient: float = 0.01) -> float:
    """Take a step with this loss; return how far each element of `a` went."""
    before = run.learner.parameters()["a"].detach().clone()
    for parameter in run.learner.parameters().values():
        assert parameter.grad is not None
        parameter.grad.fill_(gradient)
    run.apply(loss, run.batch(), 0.5)
    return float((run.learner.parameters()["a"].detach() - before).abs().max())


def judged(right: int, loss: float) -> Judged:
    return Judged(loss * 4, 4.0, [torch.tensor([right, 4])])


def offer(run: Run, weight: float, right: int, loss: float = 1.0) -> bool:
    with torch.no_grad():
        for parameter in run.learner.parameters().values():
            parameter.fill_(weight)
    return run.evaluated(judged(right, loss))[1]


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
    run = run_of()
    for number, (weight, right) in enumerate([(1.0, 2), (2.0, 3), (3.0, 2), (4.0, 3)]):
        run.step = number
        assert offer(run, weight, right) == (number < 2)
    assert [e.step for e in run.history] == [0, 1, 2, 3]
    assert run.best == Evaluation(1, "accuracy", 0.75, 1.0)
    run.finish()
    assert all(p.tolist() == [2.0] * 3 for p in run.learner.parameters().values())


def test_without_evaluations_the_last_weights_stay() -> None:
    run = run_of(5.0, validation=0)
    assert not run.due
    run.finish()
    assert run.learner.parameters()["a"].tolist() == [5.0] * 3


@pytest.mark.parametrize("patience", [1, 3])
def test_it_stops_once_so_many_evaluations_were_no_better(patience: int) -> None:
    run = run_of(early_stopping=patience)
    offer(run, 1.0, 3)
    for _ in range(patience - 1):
        offer(run, 2.0, 2)
        assert not run.done
    offer(run, 1.0, 4)  # better: the count begins anew
    for number in range(patience):
        assert not run.done
        offer(run, 2.0, 4 if number else 3)
    assert run.done
    assert run.stopped_early


def test_the_last_step_is_the_end_and_no_early_stop() -> None:
    run = run_of(early_stopping=1)
    offer(run, 1.0, 3)
    run.step = run.steps
    offer(run, 1.0, 2)
    assert run.done
    assert not run.stopped_early


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_training_with_advice(value: float) -> None:
    with pytest.raises(TrainingError, match=r"the loss became .* at step 9.*lower training\.learning_rate"):
        check_finite(value, "the loss", 9)
    check_finite(1e30, "the loss", 9)
    with pytest.raises(TrainingError, match=r"the loss became .* at step 1"):
        step(run_of(), value)
    with pytest.raises(TrainingError, match="the gradient became nan at step 1"):
        step(run_of(), 1.0, math.nan)
    with pytest.raises(TrainingError, match=r"the loss on validation became .* at step 0"):
        run_of().evaluated(judged(1, value))


def test_weights_that_are_no_numbers_are_not_published() -> None:
    run = run_of(math.nan, validation=0)
    with pytest.raises(TrainingError, match=r"a holds NaN .* nothing was published"):
        run.finish()


def steps(run: Run, count: int, loss: float) -> None:
    for _ in range(count):
        step(run, loss)


def test_a_loss_that_explodes_stops_training_and_noise_does_not() -> None:
    run = run_of(steps=200)
    for number in range(100):  # noise of a factor of 3, and no trend
        step(run, 0.5 + (number * 7 % 11) / 10)
    with pytest.raises(TrainingError, match=r"the loss rose to .*it began at .*lower training\.learning_rate"):
        steps(run, 30, 9.0)
    # A loss that has fallen and comes back to where it began has learnt nothing, but one that goes beyond has exploded.
    falling = run_of(steps=200)
    for number in range(80):
        step(falling, max(0.01, 2.0 * 0.9**number))
    steps(falling, 50, 2.0)
    with pytest.raises(TrainingError, match="the loss rose to"):
        steps(falling, 50, 6.0)
    # The first steps are no ground to judge from.
    young = run_of()
    step(young, 1.0)
    steps(young, 8, 100.0)


def test_the_rate_follows_the_schedule_and_is_a_third_once_slowed() -> None:
    run = run_of(schedule="constant", warmup=0.5, learning_rate=0.3)
    assert run.learning_rate() == pytest.approx(0.3 / 31)
    run.step = 40
    assert run.learning_rate() == pytest.approx(0.3)
    run.slowed = 1
    assert run.learning_rate() == pytest.approx(0.1)
    assert pytest.approx(1 / 3) == SLOWER
    # Adam's first step is the rate itself, whatever the gradient.
    assert step(run) == pytest.approx(0.1, rel=1e-4)


def test_b_matrices_learn_at_their_own_rate() -> None:
    run = run_of(lora_plus=8.0, learning_rate=0.01, schedule="constant", warmup=0.0)
    a = step(run)
    assert a == pytest.approx(0.01, rel=1e-3)
    assert float(run.learner.parameters()["b"].detach().abs().max()) == pytest.approx(0.08, rel=1e-3)
    names = {"base_model.x.lora_A.default.weight": 1.0, "base_model.x.lora_B.default.weight": 8.0, "head.bias": 1.0}
    optimizer = make_optimizer({name: torch.zeros(2, requires_grad=True) for name in names}, run.settings)
    assert sorted(group.ratio for group in optimizer.groups) == [1.0, 8.0]


def test_gradients_are_clipped_and_the_report_tells_what_they_were() -> None:
    run = run_of(max_grad_norm=0.5)
    for parameter in run.learner.parameters().values():
        assert parameter.grad is not None
        parameter.grad.fill_(2.0)
    report = run.apply(1.5, run.batch(), 0.5)
    assert report.gradient_norm == pytest.approx(2.0 * math.sqrt(6))
    assert (report.step, report.steps, report.loss) == (1, 60, 1.5)
    assert report.epoch == pytest.approx(1 / 3)
    # The optimiser's own time counts too.
    assert run.speed.seconds > 0.5
    assert report.examples_per_second == 4 / run.speed.seconds
    assert report.seconds_left == pytest.approx(run.speed.seconds * 59)
    assert all(not p.grad.any() for p in run.learner.parameters().values() if p.grad is not None)
    assert run.learner.refreshed == 1  # type: ignore[attr-defined]


def test_a_run_goes_on_from_a_snapshot_as_it_would_have() -> None:
    def lived(run: Run, count: int) -> list[float]:
        found = []
        for _ in range(count):
            noise = float(torch.rand((), generator=run.learner.generator))  # type: ignore[attr-defined]
            found.append(step(run, 1.0 + noise / 10, noise - 0.5))
            if run.step % 3 == 0:
                run.evaluated(judged(run.step % 4, noise))
        return found

    run = run_of(early_stopping=9)
    lived(run, 13)
    snapshot = run.snapshot()
    assert json.loads(json.dumps(snapshot.values, allow_nan=False)) == snapshot.values
    after = lived(run, 14)
    end = run.snapshot()
    # The same run goes back, another one goes on.
    for other in (run, run_of(early_stopping=9)):
        other.restore(Snapshot({k: v.clone() for k, v in snapshot.tensors.items()}, snapshot.values))
        assert other.step == 13
        assert other.batch() == run_at(13).batch()
        assert lived(other, 14) == after
        found = other.snapshot()
        assert untimed(found.values) == untimed(end.values)
        assert found.tensors.keys() == end.tensors.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in end.tensors.items())


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out the seconds, which differ each time."""
    return {**values, "speed": values["speed"][:2]}


def run_at(number: int) -> Run:
    run = run_of()
    run.step = number
    return run


def test_a_snapshot_of_the_beginning_forgets_what_came_after() -> None:
    run = run_of()
    snapshot = run.snapshot()
    first = step(run)
    run.evaluated(judged(4, 0.1))
    run.restore(snapshot)
    assert (run.step, run.best, run.history) == (0, None, [])
    assert run.learner.parameters()["a"].tolist() == [0.0] * 3
    assert step(run) == first
    run.finish()
    assert run.learner.parameters()["a"].tolist() != [0.0] * 3
