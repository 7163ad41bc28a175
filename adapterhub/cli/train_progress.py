"""How training looks while it runs: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from adapterhub.training.job import Evaluation, Progress, StepReport


def progress_for(console: Console) -> Progress:
    """Return what shows progress best on this console."""
    return LiveProgress(console) if console.is_terminal else LineProgress(console)


def describe(evaluation: Evaluation, *, best: bool) -> str:
    """Return an evaluation as a line of text."""
    loss = "" if evaluation.metric == "loss" else f", loss {evaluation.loss:.4f}"
    value = f"{evaluation.metric} {evaluation.value:.4f}{loss}"
    return f"step {evaluation.step}: validation {value}{' (best so far)' if best else ''}"


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, or m:ss where there are no hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LineProgress:
    """One short line about every tenth of the steps, for logs."""

    def __init__(self, console: Console) -> None:
        """Write to `console`."""
        self._console = console
        self._said = 0

    def stage(self, message: str) -> None:
        """Print the line."""
        self._console.print(message, markup=False, highlight=False)

    def begin(self, steps: int) -> None:
        """Say how many steps there are."""
        self._said = 0
        self.stage(f"training, at most {steps} steps")

    def step(self, report: StepReport) -> None:
        """Print a line where another tenth is done."""
        tenth = 10 * report.step // report.steps
        if tenth > self._said:
            self._said = tenth
            left = duration(report.seconds_left)
            self.stage(
                f"step {report.step}/{report.steps}: loss {report.loss:.4f}, "
                f"{report.examples_per_second:.1f} examples/s, {report.tokens_per_second:.0f} tokens/s, {left} left"
            )

    def evaluated(self, evaluation: Evaluation, *, best: bool) -> None:
        """Print the evaluation."""
        self.stage(describe(evaluation, best=best))

    def end(self) -> None:
        """Do nothing: every line is out already."""


class LiveProgress(LineProgress):
    """A bar with loss, speed and time left; evaluations scroll above it."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`, a terminal."""
        super().__init__(console)
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def begin(self, steps: int) -> None:
        """Show the bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[report]}"))
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task("training", total=steps, report="")

    def step(self, report: StepReport) -> None:
        """Move the bar."""
        assert self._bar is not None, "begin comes first"
        assert self._task is not None, "begin comes first"
        text = (
            f"loss {report.loss:.4f}  {report.examples_per_second:.1f} examples/s  "
            f"{report.tokens_per_second:.0f} tokens/s  {duration(report.seconds_left)} left"
        )
        self._bar.update(self._task, completed=report.step, report=text)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
