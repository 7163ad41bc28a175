"""The training loop: batch after batch, one optimiser step each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from adapterhub.recipe import Training

from .batches import epoch_batches
from .evaluate import BestWeights, Limits, check_finite, evaluate
from .job import Progress, StepReport
from .network import Network
from .objectives import Objective
from .parts import accumulate
from .rows import Row
from .schedule import multiplier, steps_per_epoch, total_steps


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
class Loop:
    """Everything one training run needs; `run` runs it once.

    `step` is the number of optimiser steps done, `best` what validation has shown so far.
    """

    network: Network
    objective: Objective
    train: Sequence[Row]
    validation: Sequence[Row]
    settings: Training
    limits: Limits
    accelerator: Accelerator
    progress: Progress
    step: int = 0
    stopped_early: bool = False
    speed: Speed = field(default_factory=Speed)
    best: BestWeights = field(default_factory=BestWeights)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        """Make optimiser and schedule for what the network lets learn."""
        self.steps = total_steps(
            len(self.train), self.limits.batch_size, epochs=self.settings.epochs, steps=self.settings.steps
        )
        self._every = self.settings.eval_every or steps_per_epoch(len(self.train), self.limits.batch_size)
        optimizer = make_optimizer(self.network, self.settings)
        schedule = LambdaLR(
            optimizer, lambda step: multiplier(step, self.steps, self.settings.warmup, self.settings.schedule)
        )
        _, self._optimizer, self._schedule = self.accelerator.prepare(self.network.model, optimizer, schedule)

    def run(self) -> None:
        """Train to the last step, or until validation has stopped improving; the network ends with the best weights.

        Raises TrainingError where a loss or gradient is not finite.
        """
        self.network.model.train()
        self.progress.begin(self.steps)
        self.started = time.perf_counter()
        for batch in islice(self._batches(), self.steps):
            self._learn(batch)
            if self.validation and (self.step % self._every == 0 or self.step == self.steps):
                self._evaluate()
                if self.stopped_early:
                    break
        self.best.restore(self.network)

    def _batches(self) -> Iterator[list[int]]:
        lengths = [row.length for row in self.train]
        for epoch in count():
            yield from epoch_batches(lengths, self.limits.batch_size, seed=self.settings.seed, epoch=epoch)

    def _learn(self, batch: Sequence[int]) -> None:
        """Take one optimiser step on the mean loss of all rows (or tokens) of a batch, and report it."""
        started = time.perf_counter()
        learning_rate = self._schedule.get_last_lr()[0]
        loss, tokens = self._accumulate(batch)
        check_finite(loss, "the loss", self.step + 1)
        norm = self.accelerator.clip_grad_norm_(self.network.trainable.values(), self.settings.max_grad_norm)
        check_finite(float(norm), "the gradient", self.step + 1)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.step += 1
        self.speed.seconds += time.perf_counter() - started
        self.speed.examples += len(batch)
        self.speed.tokens += tokens
        self.progress.step(
            StepReport(
                step=self.step,
                steps=self.steps,
                loss=loss,
                learning_rate=learning_rate,
                examples_per_second=self.speed.examples_per_second,
                tokens_per_second=self.speed.tokens_per_second,
                seconds_left=(time.perf_counter() - self.started) / self.step * (self.steps - self.step),
            )
        )

    def _accumulate(self, batch: Sequence[int]) -> tuple[float, int]:
        """Add up the gradients of a batch, part by part; return its mean loss and its tokens."""
        rows, device = [self.train[i] for i in batch], self.accelerator.device
        return accumulate(self.network, self.objective, rows, self.limits, device, self.accelerator.backward)

    def _evaluate(self) -> None:
        device = self.accelerator.device
        evaluation = evaluate(self.network, self.objective, self.validation, self.limits, device, self.step)
        best = self.best.offer(evaluation, self.network)
        self.progress.evaluated(evaluation, best=best)
        patience = self.settings.early_stopping
        self.stopped_early = patience is not None and self.best.stale >= patience and self.step < self.steps


def make_optimizer(network: Network, settings: Training) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; weight decay is for matrices, not for biases."""
    parameters = list(network.trainable.values())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Hundreds of small matrices: one fused kernel instead of ten operations for each.
    return AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, fused=True)
