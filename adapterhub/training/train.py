"""From a job to an adapter folder: check, encode, build, train, write."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from adapterhub.base.load import load_tokenizer
from adapterhub.data.task import TaskSpec
from adapterhub.errors import TrainingError, UsageError
from adapterhub.lora.files import write_adapter

from .answers import check_contrast, check_learnable
from .evaluate import Limits
from .job import PART_TOKENS, Progress, TrainingJob, TrainingResult
from .loop import Loop
from .machine import fit_threads, peak_memory_bytes
from .network import Network, build_network
from .objectives import Preference, objective_for
from .reference import with_references
from .rows import encode_rows, weigh_classes


def train_adapter(job: TrainingJob, out: Path, progress: Progress) -> TrainingResult:
    """Train an adapter and write adapter_config.json, adapter_model.safetensors and task.json into `out`.

    Equal jobs give equal bytes on one machine. The caller's random state is left as it was, and `out` is not touched
    before training has succeeded. Raises DataError for rows that cannot be learnt from, ConfigError for settings the
    base does not allow, BaseError where the base cannot be used, TrainingError where training breaks down.
    """
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.num_processes > 1:
        raise UsageError(
            f"training runs in one process, but {accelerator.num_processes} were launched; "
            "start adapterhub train itself, not through accelerate launch or torchrun"
        )
    fit_threads(os.environ)
    with torch.random.fork_rng():
        loop, network, started = _prepare(job, accelerator, progress)
        try:
            loop.run()
        finally:
            progress.end()
    _check_weights(network)
    spec = dataclasses.replace(job.spec, pooling=network.pooling)
    write_adapter(out, network.config, network.tensors())
    (out / "task.json").write_text(spec.to_json(), encoding="utf-8", newline="\n")
    accelerator.free_memory()
    return _result(loop, spec, time.perf_counter() - started)


def _prepare(job: TrainingJob, accelerator: Accelerator, progress: Progress) -> tuple[Loop, Network, float]:
    tokenizer = load_tokenizer(job.base, job.recipe.pad_token)
    train = encode_rows(job.train, job.spec, tokenizer, job.base.context_length)
    validation = encode_rows(job.validation, job.spec, tokenizer, job.base.context_length)
    # The rows to measure on need to be readable too, and after hours of training is no time to find out.
    encode_rows(job.test, job.spec, tokenizer, job.base.context_length)
    check_learnable([row.target for row in train], job.recipe.kind, job.spec.labels)
    if job.recipe.kind == "embedding":
        check_contrast(example.positive for example in job.train)
    train = weigh_classes(train, job.recipe.training.class_weights, job.spec.labels)
    longest = max(len(each.ids) for row in [*train, *validation] for each in row.sequences)
    network = build_network(job, tokenizer, longest, accelerator.device)
    objective = objective_for(job.recipe.kind, job.recipe.training)
    limits = Limits(job.recipe.training.batch_size, PART_TOKENS, tokenizer.pad_token_id)
    if isinstance(objective, Preference):
        progress.stage(f"{job.recipe.task}: what the base alone says of {len(train) + len(validation)} preferences")
        train, validation = (
            with_references(network, objective, rows, limits, accelerator.device) for rows in (train, validation)
        )
    loop = Loop(
        network=network,
        objective=objective,
        train=train,
        validation=validation,
        settings=job.recipe.training,
        limits=limits,
        accelerator=accelerator,
        progress=progress,
    )
    return loop, network, time.perf_counter()


def _check_weights(network: Network) -> None:
    for name, parameter in network.trainable.items():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingError(
                f"{name} holds NaN or infinite values after the last step, so nothing was published; "
                "set a lower training.learning_rate"
            )


def _result(loop: Loop, spec: TaskSpec, seconds: float) -> TrainingResult:
    return TrainingResult(
        spec=spec,
        steps=loop.step,
        seconds=seconds,
        examples_per_second=loop.speed.examples_per_second,
        tokens_per_second=loop.speed.tokens_per_second,
        peak_memory_bytes=peak_memory_bytes(),
        precision=str(loop.network.dtype).removeprefix("torch."),
        trainable_parameters=sum(p.numel() for p in loop.network.trainable.values()),
        stopped_early=loop.stopped_early,
        best=loop.best.evaluation,
        history=tuple(loop.best.history),
    )
