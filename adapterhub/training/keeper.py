"""What a training keeps on disk while it runs: checkpoints, and each run's journal."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .job import Evaluation, StepReport
from .journal import PLOT, Journal, draw_losses, read_lines

CHECKPOINTS = "*.checkpoint.safetensors"


class Keeper:
    """Writes to `folder`: `<name>.checkpoint.safetensors`, and `<run>/train.jsonl` and `loss.png` for each run.

    `main` is whether this process is the one that writes; all may read. `file` is the checkpoint's.
    """

    def __init__(self, folder: Path, name: str, *, main: bool = True) -> None:
        self.folder = folder
        self.file = folder / CHECKPOINTS.replace("*", name)
        self._main = main
        self._journals: dict[str, Journal] = {}

    def read(self) -> Checkpoint | None:
        """Return the last checkpoint, if there is one. Raises TrainingError for a damaged one."""
        return read_checkpoint(self.file)

    def rewind(self, run: str, step: int) -> None:
        """Have a run's journal go on after `step`: what it says of later steps is void. Raises OSError, as all of this.

        A journal that could not be opened takes no lines.
        """
        if self._main:
            if journal := self._journals.pop(run, None):
                journal.close()
            self._journals[run] = Journal(self.folder / run, step)

    def step(self, run: str, report: StepReport) -> None:
        """Write a step into a run's journal."""
        if journal := self._journals.get(run):
            journal.step(report)

    def evaluated(self, run: str, evaluation: Evaluation, *, best: bool) -> None:
        """Write an evaluation into a run's journal."""
        if journal := self._journals.get(run):
            journal.evaluated(evaluation, best=best)

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; raises OSError, and then the old one is still there."""
        if self._main:
            write_checkpoint(self.file, checkpoint)

    def end(self, run: str) -> None:
        """Close a run's journal and draw it."""
        if journal := self._journals.pop(run, None):
            journal.close()
            lines = read_lines(journal.path)
            if lines:
                draw_losses(lines, self.folder / run / PLOT, run)
