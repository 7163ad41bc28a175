"""What a training keeps on disk while it runs: checkpoints, and each run's journal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .job import Evaluation, StepReport
from .journal import PLOT, Journal, draw_losses, read_lines

CHECKPOINTS = "*.checkpoint.safetensors"


class Keeper:
    """Writes to `folder`: `<name>.checkpoint.safetensors`, and `<run>/train.jsonl` and `loss.png` for each run.

    `main` is whether this process is the one that writes; all may read.
    """

    def __init__(self, folder: Path, name: str, *, main: bool = True) -> None:
        self.folder = folder
        self._file = folder / CHECKPOINTS.replace("*", name)
        self._main = main
        self._journals: dict[str, Journal] = {}

    def read(self) -> Checkpoint | None:
        """Return the last checkpoint, if there is one. Raises TrainingError for a damaged one."""
        return read_checkpoint(self._file)

    def begin(self, runs: Iterable[tuple[str, int]]) -> None:
        """Open the journals of runs, (name, steps done)."""
        for name, step in runs:
            self.rewind(name, step)

    def rewind(self, run: str, step: int) -> None:
        """Have a run's journal go on after `step`: what it says of later steps is void."""
        if self._main:
            if run in self._journals:
                self._journals[run].close()
            self._journals[run] = Journal(self.folder / run, step)

    def step(self, run: str, report: StepReport) -> None:
        """Write a step into a run's journal."""
        if self._main:
            self._journals[run].step(report)

    def evaluated(self, run: str, evaluation: Evaluation, *, best: bool) -> None:
        """Write an evaluation into a run's journal."""
        if self._main:
            self._journals[run].evaluated(evaluation, best=best)

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; raises OSError, and then the old one is still there."""
        if self._main:
            write_checkpoint(self._file, checkpoint)

    def end(self) -> None:
        """Close the journals and draw them."""
        for name, journal in self._journals.items():
            journal.close()
            lines = read_lines(journal.path)
            if lines:
                draw_losses(lines, self.folder / name / PLOT, name)
        self._journals.clear()
