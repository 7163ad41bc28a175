"""What a training will take, from a few of its own steps on its own rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safetensors.torch import save
from torch import Tensor

from .learner import Network, Turn
from .machine import peak_memory_bytes
from .rows import Row, batch_of
from .run import Run

# Steps that are timed, after the largest one of all, which warms up and shows the memory; rows of validation.
TIMED_STEPS, TIMED_ROWS = 5, 128


@dataclass(frozen=True)
class Probe:
    """Steps and tokens are exact, and so are the adapter's bytes; seconds are those of a few steps, told for all.

    `seconds` holds evaluations and what the trunk takes, if it is not kept already. `peak_memory_bytes` is the most
    this process has held, the largest batch included.
    """

    steps: int
    tokens: int
    seconds: float
    trunk_seconds: float
    peak_memory_bytes: int
    trainable_parameters: int
    adapter_bytes: int
    precision: str
    longest_row: int


def probe_rows(run: Run) -> list[list[Row]]:
    """Return the batches to time: the largest of the first epoch, then some that are evenly spread over it."""
    batches = run.epoch()
    largest = max(batches, key=_tokens)
    spread = [batches[i * len(batches) // TIMED_STEPS] for i in range(TIMED_STEPS)]
    return [largest, *spread]


def probe_validation(run: Run) -> list[Row]:
    """Return the rows of validation to time, evenly spread."""
    return list(run.validation[:: max(1, len(run.validation) // TIMED_ROWS)])


def probe(network: Network, run: Run, tensors: Mapping[str, Tensor], trunk_seconds: float = 0.0) -> Probe:
    """Take a few steps of a run, which is of no further use, and return what all of it will take.

    `tensors` are those that the adapter's file will hold, whatever their values.
    """
    first, *batches = probe_rows(run)
    _step(network, run, first)
    seconds = sum(_step(network, run, batch) for batch in batches)
    whole = sum(map(_tokens, run.epoch()))
    tokens = round(whole * run.steps / len(run.epoch()))
    total = seconds / sum(map(_tokens, batches)) * tokens
    if run.validation:
        rows = probe_validation(run)
        started = time.perf_counter()
        network.judge(run.learner, run.objective, rows)
        share = _tokens(run.validation) / _tokens(rows)
        total += (time.perf_counter() - started) * share * run.evaluations
    return Probe(
        steps=run.steps,
        tokens=tokens,
        seconds=total + trunk_seconds,
        trunk_seconds=trunk_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        trainable_parameters=sum(p.numel() for p in run.learner.parameters().values()),
        adapter_bytes=len(save({name: each.contiguous() for name, each in tensors.items()}, metadata={"format": "pt"})),
        precision=str(network.dtype).removeprefix("torch."),
        longest_row=max(len(each.ids) for row in [*run.train, *run.validation] for each in row.sequences),
    )


def _step(network: Network, run: Run, batch: Sequence[Row]) -> float:
    started = time.perf_counter()
    share = float(run.objective.share(batch_of(batch, network.device)))
    (loss,) = network.learn([Turn(run.learner, run.objective, batch, share)])
    run.apply(loss, batch, 0.0)
    return time.perf_counter() - started


def _tokens(rows: Sequence[Row]) -> int:
    return sum(row.tokens for row in rows)
