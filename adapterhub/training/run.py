"""One adapter in training: its rows, optimiser, schedule, best weights and troubles. The loop steps many of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterhub.errors import TrainingError
from adapterhub.recipe import Training

from .adamw import AdamW, Group
from .job import Evaluation, StepReport
from .learner import Judged, Learner
from .objectives import Objective
from .order import Order
from .rows import Row
from .schedule import multiplier

# A loss this often as high as at the start, and as at its lowest, averaged over about so many steps, has exploded.
_WORSE_THAN_START, _WORSE_THAN_BEST, _AVERAGED = 2.0, 3.0, 10
# What the learning rate is multiplied by when a training that broke down is taken up again.
SLOWER = 1 / 3


@dataclass
class Speed:
    """Examples and tokens (padding not counted) seen, and the seconds their steps took."""

    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def examples_per_second(self) -> float:
        """Examples a second of training; 0 before the first step."""
        return self.examples / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of training; 0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Snapshot:
    """A run at a step, all of it that changes: tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class Run:
    """One adapter in training. `step` is the number of optimiser steps done, of at most `steps`.

    `pads` says whether the network pads batches; then rows of like length go together.
    """

    def __init__(
        self,
        name: str,
        learner: Learner,
        objective: Objective,
        train: Sequence[Row],
        validation: Sequence[Row],
        settings: Training,
        *,
        pads: bool,
    ) -> None:
        self.name, self.learner, self.objective = name, learner, objective
        self.train, self.validation, self.settings = train, validation, settings
        self._order = Order(
            [row.length for row in train],
            batch_size=settings.batch_size,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
            alike=pads,
        )
        self.steps = self._order.steps(epochs=settings.epochs, steps=settings.steps)
        self._every = settings.eval_every or self._order.steps_an_epoch
        self._optimizer = make_optimizer(learner.parameters(), settings)
        self.step = 0
        self.slowed = 0
        self.stopped_early = False
        self.speed = Speed()
        self.best: Evaluation | None = None
        self.history: list[Evaluation] = []
        self._best_tensors: dict[str, Tensor] = {}
        self._stale = 0
        self._first: list[float] = []
        self._average = self._lowest = math.inf
        self.seconds = self.trunk_seconds = 0.0

    @property
    def done(self) -> bool:
        """Whether there is no further step."""
        return self.stopped_early or self.step >= self.steps

    @property
    def due(self) -> bool:
        """Whether validation comes now, after the last step and before the next."""
        return bool(self.validation) and (self.step % self._every == 0 or self.step == self.steps)

    def batch(self) -> list[Row]:
        """Return the rows of the next step."""
        return [self.train[row] for row in self._order.batch(self.step)]

    def epoch(self) -> list[list[Row]]:
        """Return the batches of the first epoch."""
        return [[self.train[row] for row in self._order.batch(step)] for step in range(self._order.steps_an_epoch)]

    @property
    def evaluations(self) -> int:
        """How often validation is looked at if all steps are taken."""
        whole, rest = divmod(self.steps, self._every)
        return whole + (rest > 0) if self.validation else 0

    def learning_rate(self) -> float:
        """Return the rate of the next step."""
        factor = multiplier(self.step, self.steps, self.settings.warmup, self.settings.schedule)
        return self.settings.learning_rate * factor * SLOWER**self.slowed

    def apply(self, loss: float, batch: Sequence[Row], seconds: float) -> StepReport:
        """Take the optimiser step that the learner's gradients call for; raises TrainingError where it breaks down.

        `seconds` are what the gradients took; the step's own are added.
        """
        started = time.perf_counter()
        self._check(loss)
        parameters = list(self.learner.parameters().values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        check_finite(float(norm), "the gradient", self.step + 1)
        rate = self.learning_rate()
        for group in self._optimizer.groups:
            group.lr = rate * group.ratio
        self._optimizer.step()
        self.learner.clear()
        self.learner.refresh()
        self.step += 1
        self.speed.seconds += seconds + time.perf_counter() - started
        self.speed.examples += len(batch)
        self.speed.tokens += sum(row.tokens for row in batch)
        return StepReport(
            step=self.step,
            steps=self.steps,
            loss=loss,
            learning_rate=rate,
            examples_per_second=self.speed.examples_per_second,
            tokens_per_second=self.speed.tokens_per_second,
            seconds_left=self.speed.seconds / self.step * (self.steps - self.step),
            epoch=self._order.epoch_of(self.step),
            gradient_norm=float(norm),
        )

    def evaluated(self, judged: Judged) -> tuple[Evaluation, bool]:
        """Take note of validation; return it, and whether its weights are the best so far and kept."""
        mean = judged.loss / judged.share
        check_finite(mean, "the loss on validation", self.step)
        value = self.objective.value(judged.tallies, mean)
        evaluation = Evaluation(self.step, self.objective.metric, value, mean)
        self.history.append(evaluation)
        better = evaluation.better_than(self.best)
        if better:
            self.best, self._stale = evaluation, 0
            self._best_tensors = {name: p.detach().clone() for name, p in self.learner.parameters().items()}
        else:
            self._stale += 1
            patience = self.settings.early_stopping
            self.stopped_early = patience is not None and self._stale >= patience and self.step < self.steps
        return evaluation, better

    @torch.no_grad()
    def finish(self) -> None:
        """Put the best weights back; without validation the last ones stay. Raises TrainingError for broken ones."""
        for name, parameter in self.learner.parameters().items():
            if name in self._best_tensors:
                parameter.copy_(self._best_tensors[name])
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"{name} holds NaN or infinite values after the last step, so nothing was published; "
                    "set a lower training.learning_rate"
                )
        self.learner.refresh()

    @property
    def sound(self) -> bool:
        """Whether all parameters are finite: weights can go bad a step before the loss shows it."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.learner.parameters().values())

    def snapshot(self) -> Snapshot:
        """Return a copy of everything that changes from step to step."""
        tensors = {"random": self.learner.random_state()}
        for name, parameter in self.learner.parameters().items():
            tensors[f"parameter.{name}"] = parameter.detach()
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"best.{name}": tensor for name, tensor in self._best_tensors.items()}
        values = {
            "step": self.step,
            "slowed": self.slowed,
            "stopped_early": self.stopped_early,
            "speed": [self.speed.examples, self.speed.tokens, self.speed.seconds],
            "history": [evaluation.to_record() for evaluation in self.history],
            "best": None if self.best is None else self.best.to_record(),
            "stale": self._stale,
            "losses": [self._first, _plain(self._average), _plain(self._lowest)],
            "seconds": self.seconds,
        }
        return Snapshot({name: tensor.clone() for name, tensor in tensors.items()}, values)

    def fits(self, snapshot: Snapshot) -> bool:
        """Say whether a snapshot has the parameters of this run, in these shapes."""
        own = {f"parameter.{name}": p.shape for name, p in self.learner.parameters().items()}
        return own == {name: p.shape for name, p in snapshot.tensors.items() if name.startswith("parameter.")}

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Go back, or on, to where a snapshot of this run was taken."""
        tensors, values = snapshot.tensors, snapshot.values
        self.learner.set_random_state(tensors["random"])
        for name, parameter in self.learner.parameters().items():
            parameter.copy_(tensors[f"parameter.{name}"])
            state = {
                key: tensors[f"optimizer.{key}.{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in tensors
            }
            self._optimizer.state.pop(parameter, None)
            if state:
                self._optimizer.state[parameter] = state
        self._best_tensors = {
            name.removeprefix("best."): tensor.clone() for name, tensor in tensors.items() if name.startswith("best.")
        }
        self.learner.clear()
        self.learner.refresh()
        self.step, self.slowed, self.stopped_early = values["step"], values["slowed"], values["stopped_early"]
        self.speed = Speed(*values["speed"])
        self.history = [Evaluation(**record) for record in values["history"]]
        self.best = None if values["best"] is None else Evaluation(**values["best"])
        self._stale = values["stale"]
        first, average, lowest = values["losses"]
        self._first = list(first)
        self._average, self._lowest = (math.inf if each is None else each for each in (average, lowest))
        self.seconds = values["seconds"]

    def _check(self, loss: float) -> None:
        """Raise TrainingError for a loss that is not finite, or has exploded."""
        check_finite(loss, "the loss", self.step + 1)
        if len(self._first) < _AVERAGED:
            self._first.append(loss)
        self._average = loss if self._average == math.inf else self._average + (loss - self._average) / _AVERAGED
        self._lowest = min(self._lowest, self._average)
        start = sum(self._first) / len(self._first)
        limit = max(_WORSE_THAN_START * abs(start), _WORSE_THAN_BEST * abs(self._lowest))
        if len(self._first) == _AVERAGED and self._average > limit:
            raise TrainingError(
                f"the loss rose to {self._average:.3g} at step {self.step + 1} (it began at {start:.3g}, its lowest "
                f"was {self._lowest:.3g}), so training stopped and nothing was published; "
                "set a lower training.learning_rate (a third of it, say) or a longer training.warmup"
            )


def make_optimizer(parameters: Mapping[str, Tensor], settings: Training) -> AdamW:
    """Return AdamW over `parameters`; weight decay is for matrices, not for biases.

    With `lora_plus` the B matrices learn at that many times the rate (LoRA+, Hayou et al. 2024).
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in parameters.items():
        decay = 0.0 if name.endswith("bias") else settings.weight_decay
        ratio = settings.lora_plus if name == "b" or "lora_B" in name else 1.0
        groups.setdefault((decay, ratio), []).append(parameter)
    return AdamW([Group(each, decay, ratio, settings.learning_rate) for (decay, ratio), each in groups.items()])


def check_finite(value: float, what: str, step: int) -> None:
    """Raise TrainingError for NaN or infinity, with advice."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} became {value} at step {step}, so training stopped and nothing was published; "
            "set a lower training.learning_rate (a third of it, say) or a longer training.warmup"
        )


def _plain(value: float) -> float | None:
    """Return None for infinity, which JSON has not."""
    return None if math.isinf(value) else value
