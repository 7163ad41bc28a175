"""What training is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from adapterhub.base.source import Base
from adapterhub.data.example import Example
from adapterhub.data.task import TaskSpec
from adapterhub.recipe import Recipe

# Padded tokens in one forward and backward. A batch of short texts fits; larger parts are no faster on a CPU, and a
# whole batch of long texts would not fit into memory.
PART_TOKENS = 1024


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train: examples already read, and the rules under which they become tokens.

    `spec.pooling` may be None for classification: the network decides it, and `TrainingResult.spec` carries it.
    `validation` may be empty; then nothing is evaluated and the last weights are kept. `test` is not looked at, but
    checked as the others are: what cannot be encoded is refused before training. `init` is the folder of an adapter to
    begin at.
    """

    recipe: Recipe
    base: Base
    spec: TaskSpec
    train: Sequence[Example]
    validation: Sequence[Example] = ()
    test: Sequence[Example] = ()
    init: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """How the adapter did on validation after `step` steps; `loss` is per row, or per token for generation."""

    step: int
    metric: str
    value: float
    loss: float

    def better_than(self, other: Evaluation | None) -> bool:
        """Say whether to prefer this one: the higher metric, then the lower loss (the metric of generation is loss)."""
        if other is None:
            return True
        mine, theirs = (0.0 if e.metric == "loss" else e.value for e in (self, other))
        return (mine, -self.loss) > (theirs, -other.loss)

    def to_record(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return asdict(self)


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: the mean loss of its batch, the speed so far, and the time left if it goes on like that.

    `epoch` counts passes over the rows, `gradient_norm` is that before clipping.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    examples_per_second: float
    tokens_per_second: float
    seconds_left: float
    epoch: float
    gradient_norm: float


@dataclass(frozen=True)
class TrainingResult:
    """What came of a job.

    `spec` is what task.json says. `seconds` is all of the training, evaluations included; `trunk_seconds` before it are
    those of the layers below the adapter, where they were not kept already. Examples and tokens (padding
    not counted) per second are of the training steps alone. `best` is the evaluation whose weights were kept, None
    without validation. `peak_memory_bytes` is the most this process has held resident, `precision` the dtype the frozen
    base was computed in.
    """

    spec: TaskSpec
    steps: int
    seconds: float
    trunk_seconds: float
    examples_per_second: float
    tokens_per_second: float
    peak_memory_bytes: int
    precision: str
    trainable_parameters: int
    stopped_early: bool
    best: Evaluation | None
    history: tuple[Evaluation, ...]

    def to_record(self) -> dict[str, Any]:
        """Return a record for the card; the spec is a file of its own."""
        record = asdict(self)
        del record["spec"]
        return record


class Progress(Protocol):
    """Who is told how training goes, of several tasks perhaps; every method is called from the training thread."""

    def stage(self, message: str) -> None:
        """Say what happens next, in one line."""

    def begin(self, task: str, steps: int) -> None:
        """Get ready for at most `steps` steps of a task."""

    def step(self, task: str, report: StepReport) -> None:
        """Take note of one optimiser step."""

    def evaluated(self, task: str, evaluation: Evaluation, *, best: bool) -> None:
        """Take note of an evaluation on validation; `best` where it is the best so far."""

    def end(self, task: str) -> None:
        """Close: training of the task is over, whether it succeeded or not."""
