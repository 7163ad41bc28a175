"""What a training leaves to look at: `train.jsonl`, a line a step and an evaluation, and `loss.png`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from .job import Evaluation, StepReport

LOG, PLOT = "train.jsonl", "loss.png"


class Journal:
    """Writes a run's log as it goes; each line is out at once, so that an interrupted training has its own."""

    def __init__(self, folder: Path, step: int) -> None:
        """Go on after `step` steps: later lines of an earlier attempt will be lived through again."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        kept = [line for line in read_lines(self.path) if line["step"] <= step] if step else []
        scratch = self.path.with_name(f".{LOG}")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8", newline="\n")
        scratch.replace(self.path)
        self._file: IO[str] = self.path.open("a", encoding="utf-8", newline="\n")

    def step(self, report: StepReport) -> None:
        """Write a step."""
        self._write(
            {
                "step": report.step,
                "epoch": round(report.epoch, 4),
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "gradient_norm": report.gradient_norm,
                "examples_per_second": round(report.examples_per_second, 2),
                "tokens_per_second": round(report.tokens_per_second, 1),
            }
        )

    def evaluated(self, evaluation: Evaluation, *, best: bool) -> None:
        """Write an evaluation on validation."""
        self._write({**evaluation.to_record(), "split": "validation", "best": best})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a last one that was cut off is left out, and a missing file has none."""
    found: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return found
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def draw_losses(lines: Iterable[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the training loss, its running mean and the validation loss against steps, to a PNG.

    Where validation has a metric besides its loss, that is drawn below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = list(lines)
    steps = [line for line in every if "split" not in line]
    judged = [line for line in every if "split" in line]
    metric = next((line["metric"] for line in judged if line["metric"] != "loss"), None)
    figure = Figure(figsize=(7, 5 if metric else 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses = figure.add_subplot(2 if metric else 1, 1, 1)
    losses.plot([s["step"] for s in steps], [s["loss"] for s in steps], color="#b8c4d6", linewidth=0.8, label="batch")
    losses.plot([s["step"] for s in steps], _running_mean([s["loss"] for s in steps]), color="#2b5797", label="mean")
    losses.plot([j["step"] for j in judged], [j["loss"] for j in judged], "o-", color="#c0562b", label="validation")
    losses.set_ylabel("loss")
    losses.set_title(title)
    losses.legend(frameon=False)
    last = losses
    if metric:
        last = figure.add_subplot(2, 1, 2, sharex=losses)
        last.plot([j["step"] for j in judged], [j["value"] for j in judged], "o-", color="#c0562b")
        last.set_ylabel(metric)
    last.set_xlabel("step")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _running_mean(values: list[float], keep: float = 0.95) -> list[float]:
    """Return an exponential mean that is not drawn towards zero at its start (as Adam corrects its own)."""
    found: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(total / weight)
    return found
