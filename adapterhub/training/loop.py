"""The training loop: the next batch of every adapter in one forward and backward, then an optimiser step for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from adapterhub.errors import TrainingError

from .checkpoint import Checkpoint
from .job import Progress, StepReport
from .keeper import Keeper
from .learner import Judged, Network, Turn
from .rows import Row, batch_of
from .run import Run, Snapshot

# Steps between snapshots, which a training that breaks down goes back to; and seconds between those that are written to
# disk, which is what a killed one loses, with the steps since.
SNAPSHOT_STEPS = 25
CHECKPOINT_SECONDS = 20.0
Track = Callable[[str, Mapping[str, float], int], None]


class Loop:
    """Trains `runs` on one network, side by side; `run` does it once.

    A `keeper` keeps checkpoints and journals; `track` hears of every figure besides. `failed` says why runs ended
    before their time; the others go on.
    """

    def __init__(
        self,
        network: Network,
        runs: Sequence[Run],
        accelerator: Accelerator,
        progress: Progress,
        keeper: Keeper | None = None,
        track: Track | None = None,
    ) -> None:
        self.network, self.runs, self.failed = network, runs, dict[str, TrainingError]()
        self._accelerator, self._progress, self._keeper, self._track = accelerator, progress, keeper, track
        self._good: dict[str, Snapshot] = {}
        self._turn = 0
        self._told = False
        self._written = time.monotonic()

    def resume(self) -> bool:
        """Go on from the last checkpoint; return whether there was one. Raises TrainingError for a bad one."""
        found = None if self._keeper is None else self._keeper.read()
        if self._keeper is None or found is None:
            return False
        self.failed = {name: TrainingError(message) for name, message in found.failed.items()}
        going = [run for run in self.runs if run.name not in self.failed]
        for run in going:
            if run.name not in found.snapshots or not run.fits(found.snapshots[run.name]):
                raise TrainingError(
                    f"the checkpoint {self._keeper.file} is of another training: it has no {run.name!r} of this shape; "
                    "remove it, or train without --resume, to begin anew"
                )
        for run in going:
            run.restore(_own_random_state(found.snapshots[run.name], self._accelerator.process_index))
        self._turn = found.turn
        torch.set_num_threads(found.threads)
        return True

    def run(self) -> None:
        """Train every run to its last step, or until its validation has stopped improving; the best weights stay."""
        for run in self.runs:
            self._keep(partial(Keeper.rewind, run=run.name, step=run.step))
            self._progress.begin(run.name, run.steps)
        try:
            self._take_snapshots()
            while active := [run for run in self.runs if not run.done and run.name not in self.failed]:
                self._advance(active)
                self._turn += 1
                if self._turn % SNAPSHOT_STEPS == 0:
                    self._take_snapshots()
                    if self._write_is_due():
                        self._write()
            self._take_snapshots()
            self._write()
        finally:
            for run in self.runs:
                self._progress.end(run.name)
                self._keep(partial(Keeper.end, run=run.name))
        for run in self.runs:
            if run.name not in self.failed:
                try:
                    run.finish()
                except TrainingError as error:
                    self._give_up(run, error)

    def _advance(self, active: Sequence[Run]) -> None:
        """Take one step of each run."""
        started = time.perf_counter()
        batches = [run.batch() for run in active]
        turns = [self._turn_of(run, batch) for run, batch in zip(active, batches, strict=True)]
        losses = self._summed(self.network.learn(turns), active)
        seconds = time.perf_counter() - started
        for run, batch, loss in zip(active, batches, losses, strict=True):
            begun = time.perf_counter()
            self._guarded(run, lambda run=run, batch=batch, loss=loss: self._apply(run, loss, batch, seconds))  # type: ignore[misc]
            run.seconds += seconds + time.perf_counter() - begun

    def _apply(self, run: Run, loss: float, batch: Sequence[Row], seconds: float) -> None:
        report = run.apply(loss, batch, seconds)
        self._progress.step(run.name, report)
        self._keep(partial(Keeper.step, run=run.name, report=report))
        if self._track is not None:
            self._track(run.name, _tracked(report), report.step)
        if run.due:
            evaluation, best = run.evaluated(self._judged(run))
            self._progress.evaluated(run.name, evaluation, best=best)
            self._keep(partial(Keeper.evaluated, run=run.name, evaluation=evaluation, best=best))
            if self._track is not None:
                value = {"validation_loss": evaluation.loss, f"validation_{evaluation.metric}": evaluation.value}
                self._track(run.name, value, evaluation.step)

    def _guarded(self, run: Run, work: Callable[[], object]) -> None:
        """Do `work`; where it breaks down, go back to the last good snapshot with a lower rate once, else give up."""
        try:
            work()
        except TrainingError as error:
            run.learner.clear()
            if run.slowed:
                self._give_up(run, error)
                return
            good = self._good[run.name]
            run.restore(good)
            run.slowed = good.values["slowed"] = 1
            self._progress.stage(
                f"{run.name}: {error}. Going back to step {run.step}, once, with a third of the learning rate"
            )
            self._keep(partial(Keeper.rewind, run=run.name, step=run.step))

    def _give_up(self, run: Run, error: TrainingError) -> None:
        self.failed[run.name] = error
        self._progress.stage(f"{run.name}: {error}")

    def _keep(self, write: Callable[[Keeper], None]) -> None:
        """Write to journals; a full disk is told once, and training goes on."""
        if self._keeper is None:
            return
        try:
            write(self._keeper)
        except OSError as error:
            if not self._told:
                self._progress.stage(
                    f"the journals in {self._keeper.folder} could not be written ({error.strerror or error}); training "
                    "goes on, and they will have gaps"
                )
            self._told = True

    def _turn_of(self, run: Run, batch: Sequence[Row]) -> Turn:
        """Return this process's part of a batch, with the weight of all of it."""
        share = float(run.objective.share(batch_of(batch, torch.device("cpu"))))
        own = batch[self._accelerator.process_index :: self._accelerator.num_processes]
        return Turn(run.learner, run.objective, own, share)

    def _summed(self, losses: Sequence[float], active: Sequence[Run]) -> list[float]:
        """Add up losses and gradients over processes."""
        if self._accelerator.num_processes == 1:
            return list(losses)
        for parameter in (p for run in active for p in run.learner.parameters().values()):
            if parameter.grad is None:
                # A batch of fewer rows than processes leaves some without any.
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
        told = torch.tensor(losses, dtype=torch.float64, device=self._accelerator.device)
        torch.distributed.all_reduce(told)
        found: list[float] = told.tolist()
        return found

    def _judged(self, run: Run) -> Judged:
        """Return what the run's validation rows come to, each process judging its part."""
        many = self._accelerator.num_processes
        if many == 1 or run.objective.joint:
            return self.network.judge(run.learner, run.objective, run.validation)
        own = run.validation[self._accelerator.process_index :: many]
        judged = self.network.judge(run.learner, run.objective, own)
        parts: list[Judged] = gather_object([judged])
        return Judged(
            sum(part.loss for part in parts),
            sum(part.share for part in parts),
            [tally for part in parts for tally in part.tallies],
        )

    def _take_snapshots(self) -> None:
        """Take a snapshot of each run that is sound; of the others the last good one stays, or the first of all."""
        going = [run for run in self.runs if run.name not in self.failed]
        self._good = {
            run.name: run.snapshot() if run.sound or run.name not in self._good else self._good[run.name]
            for run in going
        }

    def _write_is_due(self) -> bool:
        """Say whether it is time; the first process decides for all, since all take part and their clocks differ."""
        due = [time.monotonic() - self._written >= CHECKPOINT_SECONDS]
        if self._accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(due)
        return due[0]

    def _write(self) -> None:
        """Write the snapshots at hand to disk; a full disk is told, and training goes on."""
        snapshots = _with_random_states(self._good, self._accelerator)
        self._written = time.monotonic()
        if self._keeper is None:
            return
        failed = {name: str(error) for name, error in self.failed.items()}
        try:
            self._keeper.write(Checkpoint(self._turn, torch.get_num_threads(), snapshots, failed))
        except OSError as error:
            self._progress.stage(
                f"the checkpoint could not be written to {self._keeper.folder} ({error.strerror or error}); training "
                "goes on, and --resume would begin at the one before"
            )


def _tracked(report: StepReport) -> dict[str, float]:
    return {
        "loss": report.loss,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "examples_per_second": report.examples_per_second,
    }


def _with_random_states(snapshots: Mapping[str, Snapshot], accelerator: Accelerator) -> dict[str, Snapshot]:
    """Return snapshots that hold the random state of each process, "random.0" and so on: dropout differs among them."""
    found = dict(snapshots)
    for name, snapshot in snapshots.items():
        own: Any = snapshot.tensors["random"]
        states: list[Tensor] = gather_object([own]) if accelerator.num_processes > 1 else [own]
        tensors = {key: tensor for key, tensor in snapshot.tensors.items() if key != "random"}
        found[name] = Snapshot(
            tensors | {f"random.{i}": state for i, state in enumerate(states)}, dict(snapshot.values)
        )
    return found


def _own_random_state(snapshot: Snapshot, process: int) -> Snapshot:
    """Return a stored snapshot with this process's random state. Raises TrainingError where there were fewer."""
    state = snapshot.tensors.get(f"random.{process}")
    if state is None:
        raise TrainingError(
            "the checkpoint was written by fewer processes than were launched now; resume with as many as then"
        )
    return Snapshot({**snapshot.tensors, "random": state}, snapshot.values)
