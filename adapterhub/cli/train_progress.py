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
        self._said: dict[str, int] = {}

    def stage(self, message: str) -> None:
        """Print the line."""
        self._console.print(message, markup=False, highlight=False)

    def begin(self, task: str, steps: int) -> None:
        """Say how many steps there are."""
        self._said[task] = 0
        self.stage(f"{task}: training, at most {steps} steps")

    def step(self, task: str, report: StepReport) -> None:
        """Print a line where another tenth is done."""
        tenth = 10 * report.step // report.steps
        if tenth > self._said[task]:
            self._said[task] = tenth
            left = duration(report.seconds_left)
            self.stage(
                f"{task}: step {report.step}/{report.steps}: loss {report.loss:.4f}, "
                f"{report.examples_per_second:.1f} examples/s, {report.tokens_per_second:.0f} tokens/s, {left} left"
            )

    def evaluated(self, task: str, evaluation: Evaluation, *, best: bool) -> None:
        """Print the evaluation."""
        self.stage(f"{task}: {describe(evaluation, best=best)}")

    def end(self, task: str) -> None:
        """Do nothing: every line is out already."""


class QuietProgress(LineProgress):
    """What happens next, and nothing of single steps: for many trainings after one another."""

    def begin(self, task: str, steps: int) -> None:
        """Say nothing."""

    def step(self, task: str, report: StepReport) -> None:
        """Say nothing."""


class LiveProgress(LineProgress):
    """A bar a task with loss, speed and time left; evaluations scroll above them."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`, a terminal."""
        super().__init__(console)
        self._bars: Bar | None = None
        self._tasks: dict[str, TaskID] = {}

    def begin(self, task: str, steps: int) -> None:
        """Show the task's bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        if self._bars is None:
            name, report = TextColumn("{task.description}"), TextColumn("{task.fields[report]}")
            self._bars = Progress(
                name, BarColumn(), MofNCompleteColumn(), report, console=self._console, transient=True
            )
            self._bars.start()
        self._tasks[task] = self._bars.add_task(task, total=steps, report="")

    def step(self, task: str, report: StepReport) -> None:
        """Move the bar."""
        assert self._bars is not None, "begin comes first"
        text = (
            f"loss {report.loss:.4f}  {report.examples_per_second:.1f} examples/s  "
            f"{report.tokens_per_second:.0f} tokens/s  {duration(report.seconds_left)} left"
        )
        self._bars.update(self._tasks[task], completed=report.step, report=text)

    def end(self, task: str) -> None:
        """Take the bar away, and with the last one all of it."""
        self._tasks.pop(task, None)
        if self._bars is not None and not self._tasks:
            self._bars.stop()
            self._bars = None
