"""Worker: the training of this repository, as `adapterhub train` calls it; a new adapter every time.

One job, or several of one base, in turn or together. `seconds` are by the clock, from the moment a training says that
it begins to the end of its last step: forward, backward, optimiser and whatever is between. `call_seconds` are all,
with reading the base before it, filling a trunk and writing the adapters.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from line import peak_memory_bytes, serve, take_stdout

answers = take_stdout()
sys.path.append(str(Path(__file__).parents[1]))

import torch  # noqa: E402
from public import PublicTask  # noqa: E402

from adapterhub.folders import cache_root  # noqa: E402
from adapterhub.training.job import Evaluation, Progress, StepReport, TrainingJob, TrainingResult  # noqa: E402
from adapterhub.training.train import Trainer, train_adapter  # noqa: E402


class Clock:
    """Progress that notes when training began and when its last step was done."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.loss = 0.0

    @property
    def seconds(self) -> float:
        """Seconds from the beginning to the last step."""
        return self.ended - self.began

    def stage(self, message: str) -> None:
        """Tell the log."""
        print(message, flush=True)

    def begin(self, _task: str, _steps: int) -> None:
        """Start, once."""
        self.began = self.began or time.perf_counter()

    def step(self, _task: str, report: StepReport) -> None:
        """Stop, unless another step comes."""
        self.ended, self.loss = time.perf_counter(), report.loss

    def evaluated(self, _task: str, _evaluation: Evaluation, *, best: bool) -> None:
        """Do nothing: nothing is validated here."""

    def end(self, _task: str) -> None:
        """Do nothing."""


def train_together(jobs: Sequence[TrainingJob], outs: Sequence[Path], progress: Progress) -> Sequence[TrainingResult]:
    """Train several adapters of one base at once."""
    trainer = Trainer(jobs[0].base, jobs[0].recipe.training.precision)
    results = []
    for outcome, out in zip(trainer.train(jobs, progress), outs, strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        outcome.write(out)
        results.append(outcome.result)
    trainer.close()
    return results


def train_in_turn(
    jobs: Sequence[TrainingJob], outs: Sequence[Path], clocks: Sequence[Clock]
) -> Sequence[TrainingResult]:
    """Train one adapter after another."""
    return [train_adapter(*each) for each in zip(jobs, outs, clocks, strict=True)]


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def use_cache(folder: Path) -> None:
    """Keep trunks in `folder` and take all else from the real cache, or a second run would find the trunks filled."""
    for each in cache_root().iterdir():
        if each.name != "trunks":
            (folder / each.name).symlink_to(each)
    os.environ["ADAPTERHUB_CACHE"] = str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="by name, from recipes/benchmarks")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--cache", type=Path, required=True, help="an empty folder")
    options = parser.parse_args()
    use_cache(options.cache)
    task = PublicTask.open(options.recipe, options.overrides)

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        jobs = [task.job(each["rows"], each.get("overrides", ())) for each in command["jobs"]]
        with tempfile.TemporaryDirectory() as scratch:
            outs = [Path(scratch) / str(number) for number in range(len(jobs))]
            started = time.perf_counter()
            if command.get("together"):
                clocks = [Clock()]
                results = train_together(jobs, outs, clocks[0])
            else:
                clocks = [Clock() for _ in jobs]
                results = train_in_turn(jobs, outs, clocks)
            called = time.perf_counter() - started
            return {
                "seconds": sum(clock.seconds for clock in clocks),
                "call_seconds": called,
                "examples": sum(len(job.train) for job in jobs),
                "tokens": sum(len(each["ids"]) for job in jobs for each in task.records(job.train)),
                "loss": clocks[-1].loss,
                "peak_memory_bytes": peak_memory_bytes(),
                "adapter_bytes": sum(map(folder_bytes, outs)),
                "results": [result.to_record() for result in results],
            }

    about = {
        "engine": f"adapterhub {version('adapterhub')}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
    }
    serve(answers, answer, about)


if __name__ == "__main__":
    main()
