"""From jobs to adapter folders: check, encode, choose the network, train, write."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from adapterhub.base.architecture import read_config
from adapterhub.base.describe import hidden_size
from adapterhub.base.llama import is_trainable
from adapterhub.base.load import compute_dtype, load_tokenizer
from adapterhub.base.record import Base
from adapterhub.errors import AdapterHubError, UsageError
from adapterhub.folders import cache_root
from adapterhub.lora.config import AdapterConfig
from adapterhub.lora.files import write_adapter

from .answers import check_contrast, check_learnable
from .begin import Principal, begin_at
from .job import Progress, TrainingJob, TrainingResult
from .keeper import CHECKPOINTS, Keeper
from .learner import Learner, Network
from .loop import Loop
from .machine import fit_threads, peak_memory_bytes
from .objectives import objective_for
from .packed.network import PackedLearner, PackedNetwork, packed_learner
from .packed.trunk import Trunk, fits_on_disk
from .probe import Probe, probe, probe_rows, probe_validation
from .rows import Row, encode_rows, weigh_classes
from .run import Run

if TYPE_CHECKING:
    from .general import GeneralNetwork, PeftLearner


@dataclass(frozen=True)
class Trained:
    """A trained adapter, ready to be written."""

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    result: TrainingResult

    def write(self, out: Path) -> None:
        """Write adapter_config.json, adapter_model.safetensors and task.json into `out`."""
        write_adapter(out, self.config, self.tensors)
        (out / "task.json").write_text(self.result.spec.to_json(), encoding="utf-8", newline="\n")


@dataclass(frozen=True)
class _Ready:
    """A job whose rows are encoded."""

    job: TrainingJob
    train: Sequence[Row]
    validation: Sequence[Row]
    pad_token_id: int

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(each.ids) for row in [*self.train, *self.validation] for each in row.sequences)


@dataclass(frozen=True)
class _Started:
    """A run, and the principal components it began at, where it did."""

    run: Run
    ready: _Ready
    principal: Principal | None


class Trainer:
    """Trains adapters on one frozen base; one of the Llama family stays in memory from one call to the next.

    `precision` is that of the base. Under `accelerate launch` every process makes the same calls.
    """

    def __init__(
        self, base: Base, precision: str = "auto", *, tracker: str | None = None, folder: Path | None = None
    ) -> None:
        """`tracker` names a tracker that accelerate knows, which writes to `folder` if it writes files at all.

        Raises UsageError where it is not known, or its package is missing.
        """
        try:
            # Processes that torchrun starts find each other on a CPU only if accelerate is told that there is no other.
            cpu = not torch.accelerator.is_available()
            self.accelerator = Accelerator(cpu=cpu, mixed_precision="no", log_with=tracker, project_dir=folder)
            if tracker is not None:
                self.accelerator.init_trackers("adapterhub")
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"the tracker {tracker!r} cannot be used ({error}); install its package, or name another that "
                "accelerate knows, such as tensorboard"
            ) from error
        device = self.accelerator.device
        fit_threads(hidden_size(base), compute_dtype(precision, device.type), device)
        self._base, self._precision, self._tracker = base, precision, tracker
        self._packs = is_trainable(read_config(base.path))
        self._packed: PackedNetwork | None = None
        self._trunks: dict[int, Trunk] = {}

    def close(self) -> None:
        """Let go of the base, and end the tracker."""
        self._packed = None
        self._trunks.clear()
        if self._tracker is not None:
            self.accelerator.end_training()
        self.accelerator.free_memory()

    def forget(self, folder: Path) -> None:
        """Remove the checkpoints in `folder`: what was trained is safe elsewhere."""
        for pattern in (CHECKPOINTS, f".{CHECKPOINTS}-*"):  # those that were cut off while they were written, too
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)

    def train(
        self, jobs: Sequence[TrainingJob], progress: Progress, folder: Path | None = None, *, resume: bool = False
    ) -> list[Trained | AdapterHubError]:
        """Train the adapters of `jobs`, all of this base, and return for each what came of it, in order.

        Those that the packed decoder computes learn at the same time, the others one after another. With a `folder`,
        checkpoints and journals are kept there, and `resume` goes on from a checkpoint. The caller's random state is
        left as it was.
        """
        found: dict[int, Trained | AdapterHubError] = {}
        ready: dict[int, _Ready] = {}
        for i, job in enumerate(jobs):
            try:
                ready[i] = self._encoded(job)
            except AdapterHubError as error:
                found[i] = error
        together = [i for i, each in ready.items() if self._is_packed(each.job)]
        groups = [together] if together else []
        groups += [[i] for i in ready if i not in together]
        for group in groups:
            named = "all" if group is together else jobs[group[0]].recipe.task
            keeper = None if folder is None else Keeper(folder, named, main=self.accelerator.is_main_process)
            with torch.random.fork_rng():
                outcomes = self._together([ready[i] for i in group], progress, keeper, resume=resume)
            found |= dict(zip(group, outcomes, strict=True))
        return [found[i] for i in range(len(jobs))]

    def _encoded(self, job: TrainingJob) -> _Ready:
        tokenizer = load_tokenizer(job.base, job.recipe.pad_token)
        train = encode_rows(job.train, job.spec, tokenizer, job.base.context_length)
        validation = encode_rows(job.validation, job.spec, tokenizer, job.base.context_length)
        # The rows to measure on need to be readable too, and after hours of training is no time to find out.
        encode_rows(job.test, job.spec, tokenizer, job.base.context_length)
        check_learnable([row.target for row in train], job.recipe.kind, job.spec.labels)
        if job.recipe.kind == "embedding":
            check_contrast(example.positive for example in job.train)
            if self.accelerator.num_processes > 1:
                raise UsageError(
                    "an embedding learns from all rows of a batch at once, so it is trained in one process; "
                    "start adapterhub train itself, not through torchrun or accelerate launch"
                )
        train = weigh_classes(train, job.recipe.training.class_weights, job.spec.labels)
        return _Ready(job, train, validation, int(tokenizer.pad_token_id))

    def _is_packed(self, job: TrainingJob) -> bool:
        """Say whether the packed decoder computes a job; DoRA's norms change with every step, which is left to PEFT."""
        return self._packs and job.recipe.lora.variant != "dora"

    def _together(
        self, group: Sequence[_Ready], progress: Progress, keeper: Keeper | None, *, resume: bool
    ) -> list[Trained | AdapterHubError]:
        """Train jobs on one network, and return what came of each."""
        found: dict[int, Trained | AdapterHubError] = {}
        started: dict[int, _Started] = {}
        network: Network | None = None
        for i, ready in enumerate(group):
            try:
                network, started[i] = self._start(ready, progress)
                self._use_trunk(network, started[i].run, progress)
            except AdapterHubError as error:
                found[i] = error
        if network is not None and started:
            runs = [each.run for each in started.values()]
            track = None if self._tracker is None else self._track
            loop = Loop(network, runs, self.accelerator, progress, keeper, track)
            if resume:
                resumed = loop.resume()
                told = ", ".join(f"{run.name} at step {run.step} of {run.steps}" for run in runs)
                progress.stage(
                    f"going on from the checkpoint: {told}" if resumed else "no checkpoint: from the beginning"
                )
            loop.run()
            for i, each in started.items():
                found[i] = loop.failed.get(each.run.name) or self._finished(each, network)
        return [found[i] for i in range(len(group))]

    def _start(self, ready: _Ready, progress: Progress) -> tuple[Network, _Started]:
        job, recipe = ready.job, ready.job.recipe
        network: PackedNetwork | GeneralNetwork
        learner: PackedLearner | PeftLearner
        principal = None
        if self._is_packed(job):
            network = self._packed_network(job)
            learner = network.learner(job)
            if recipe.lora.init == "pissa":
                progress.stage(f"{recipe.task}: the principal components of {len(learner.adapter.sites)} weights")
                principal = network.begin_at_principal(learner, recipe.training.seed)
        else:
            # Not above: importing PEFT takes seconds, and what the packed decoder computes needs none of it.
            from .general import GeneralNetwork, begin_at_principal, build_learner

            device = self.accelerator.device
            learner = build_learner(job, ready.pad_token_id, ready.longest, device)
            if recipe.lora.init == "pissa":
                principal = begin_at_principal(learner, recipe.training.seed)
            network = GeneralNetwork(learner, ready.pad_token_id, recipe.training.batch_size, device)
        if job.init is not None:
            begin_at(learner, job.spec.labels, job.init)
        # Every process begins with the same adapter, and draws its own dropout.
        if self.accelerator.process_index:
            torch.manual_seed(recipe.training.seed + self.accelerator.process_index)
            learner.set_random_state(
                torch.Generator().manual_seed(recipe.training.seed + self.accelerator.process_index).get_state()
            )
        train, validation = ready.train, ready.validation
        if recipe.kind == "preference":
            progress.stage(f"{recipe.task}: what the base alone says of {len(train) + len(validation)} preferences")
            train, validation = (_with_references(network, learner, rows) for rows in (train, validation))
        objective = objective_for(recipe.kind, recipe.training)
        run = Run(recipe.task, learner, objective, train, validation, recipe.training, pads=network.pads)
        return network, _Started(run, ready, principal)

    def _packed_network(self, job: TrainingJob) -> PackedNetwork:
        if self._packed is None:
            self._packed = PackedNetwork(job.base, self._precision, self.accelerator.device)
        return self._packed

    def probe(self, job: TrainingJob, progress: Progress) -> Probe:
        """Take a few steps of a job and return what all of it will take. Raises as training does."""
        with torch.random.fork_rng():
            network, started = self._start(self._encoded(job), progress)
            run = started.run
            seconds = 0.0
            if trunk := self._trunk(network, run):
                rows = [*probe_validation(run), *(row for batch in probe_rows(run) for row in batch)]
                begun = time.perf_counter()
                done = trunk.fill(_sequences(rows))
                rate = (time.perf_counter() - begun) / done if done else 0.0
                seconds = rate * trunk.tokens_missing(_sequences([*run.train, *run.validation]))
            tensors = run.learner.saved()
            if started.principal is not None:
                tensors = started.principal.plain(run.learner.config, tensors)[1]
            return probe(network, run, tensors, seconds)

    def _use_trunk(self, network: Network, run: Run, progress: Progress) -> None:
        """Have the layers below the adapter computed once, where there are any and the disk has room for it."""
        trunk = self._trunk(network, run)
        if trunk is None:
            return
        sequences = _sequences([*run.train, *run.validation])
        if not fits_on_disk(trunk.root, trunk.bytes_of(trunk.tokens_missing(sequences))):
            packed_learner(run.learner).trunk = None
            progress.stage(
                f"{run.name}: no room on the disk to keep what the {trunk.depth} layers below make of the rows"
            )
            return
        started = time.perf_counter()
        with self.accelerator.main_process_first():
            try:
                tokens = trunk.fill(sequences)
            except OSError as error:
                tokens = 0
                packed_learner(run.learner).trunk = None
                progress.stage(
                    f"{run.name}: what the {trunk.depth} layers below make of the rows cannot be kept "
                    f"({error.strerror or error}), so every step computes it anew"
                )
        if tokens:
            run.trunk_seconds = time.perf_counter() - started
            progress.stage(
                f"{run.name}: {tokens} tokens through the {trunk.depth} layers below the adapter, kept for other "
                f"trainings ({run.trunk_seconds:.0f} s)"
            )

    def _trunk(self, network: Network, run: Run) -> Trunk | None:
        """Return the trunk of a run whose adapter leaves the lowest layers alone, and have it used.

        Runs whose adapters begin at the same layer have the same, so that one line can hold the rows of both.
        """
        if not isinstance(network, PackedNetwork):
            return None
        learner = packed_learner(run.learner)
        if learner.first == 0:
            return None
        if learner.first not in self._trunks:
            root = cache_root() / "trunks"
            self._trunks[learner.first] = Trunk(root, self._base.fingerprint, network.decoder, learner.first)
        learner.trunk = self._trunks[learner.first]
        return learner.trunk

    def _track(self, task: str, values: Mapping[str, float], step: int) -> None:
        self.accelerator.log({f"{task}/{name}": value for name, value in values.items()}, step=step)

    def _finished(self, started: _Started, network: Network) -> Trained:
        run, job = started.run, started.ready.job
        config, tensors = run.learner.config, dict(run.learner.saved())
        if started.principal is not None:
            config, tensors = started.principal.plain(config, tensors)
        return Trained(
            config,
            {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
            TrainingResult(
                spec=dataclasses.replace(job.spec, pooling=run.learner.pooling),
                steps=run.step,
                seconds=run.seconds,
                trunk_seconds=run.trunk_seconds,
                examples_per_second=run.speed.examples_per_second,
                tokens_per_second=run.speed.tokens_per_second,
                peak_memory_bytes=peak_memory_bytes(),
                precision=str(network.dtype).removeprefix("torch."),
                trainable_parameters=sum(p.numel() for p in run.learner.parameters().values()),
                stopped_early=run.stopped_early,
                best=run.best,
                history=tuple(run.history),
            ),
        )


def train_adapter(job: TrainingJob, out: Path, progress: Progress) -> TrainingResult:
    """Train one adapter and write its folder `out`, which is not touched before training has succeeded.

    Equal jobs give equal bytes on one machine. Raises DataError for rows that cannot be learnt from, ConfigError for
    settings the base does not allow, BaseError where the base cannot be used, TrainingError where training breaks down.
    """
    trainer = Trainer(job.base, job.recipe.training.precision)
    (outcome,) = trainer.train([job], progress)
    trainer.close()
    if isinstance(outcome, AdapterHubError):
        raise outcome
    outcome.write(out)
    return outcome.result


def _sequences(rows: Sequence[Row]) -> list[tuple[int, ...]]:
    return [each.ids for row in rows for each in row.sequences]


def _with_references(network: PackedNetwork | GeneralNetwork, learner: Learner, rows: Sequence[Row]) -> list[Row]:
    """Return preferences, each sequence with the log-probability that the base alone gives its completion."""
    found = []
    for row, (chosen, rejected) in zip(rows, network.bare_logprobs(learner, rows), strict=True):
        (other,) = row.others
        others = (dataclasses.replace(other, target=(rejected,)),)
        found.append(dataclasses.replace(row, target=(chosen,), others=others))
    return found
