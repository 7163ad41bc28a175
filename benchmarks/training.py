"""How fast and in how much memory adapters are trained, beside PEFT, in turn on one machine.

    python benchmarks/training.py [--parts speed memory generation tasks] [--rounds 3] [--steps 15]

Base smollm2-135m-instruct, rank 8 on all linear layers. Each engine is a process of its own, stopped while another
computes, all with the same number of threads. Before each round an engine takes a few steps on other rows, so that
nothing cold is measured; then it learns from the same rows as the others, each once. Tokens are those that are not
padding. Reading the base is not measured, nor is what this trainer does before its first step (told apart). Parts:

speed       TREC-6. `stock` is what people type: transformers' Trainer and PEFT, float32, default attention, batches of
            16 in any order. `tuned` is a loop by hand: the dtype that is fastest here, eager attention, batches of 32
            of similar length, fused AdamW. `ours` and `ours-16` train all layers in batches of 32 and 16, `ours-top8`
            the upper 8 layers only; any other recipe goes in as `--ours KEY=VALUE,KEY=VALUE`
memory      the most memory a process held: full fine-tuning of all weights by the Trainer, stock, ours; and what each
            leaves on disk
generation  restaurant8k, chat template, batches of 16: a PEFT loop (float32, default attention, batches in any order)
tasks       four adapters at once (seeds and ranks differ, 8 rows of each a step) and one after another (32 rows a step)
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from public import PublicTask, load
from worker import WORKERS, Worker
from workload import machine, print_table

from adapterhub.base.load import compute_dtype

OURS = {
    "ours": (),
    "ours-16": ("training.batch_size=16",),
    "ours-top8": ("lora.layers=top-8",),
}
STOCK_BATCH, TUNED_BATCH, WARM_UP_STEPS = 16, 32, 3
CHAT = ("prompt.style=chat", f"training.batch_size={STOCK_BATCH}")
RANKS = (8, 4, 8, 16)
TASKS = [(f"task=trec6-{i}", f"training.seed={i}", f"lora.rank={rank}") for i, rank in enumerate(RANKS)]

Rows = Sequence[int]
"""Which rows of the training split."""


@dataclass
class Entrant:
    """An engine in the comparison, what it is told of a round, and what it answered."""

    name: str
    worker: Worker
    command: Callable[[Rows], dict[str, Any]]
    setting: str
    answers: list[dict[str, Any]] = field(default_factory=list)

    def run(self, warm_up: Rows, rows: Rows) -> None:
        """Run one round and keep its answer."""
        if warm_up:
            self.worker.ask(self.command(warm_up))
        answer = self.worker.ask(self.command(rows))
        if answer["examples"] != len(rows):
            raise RuntimeError(f"{self.name} was given {len(rows)} rows and learnt from {answer['examples']}")
        self.answers.append(answer)

    def rates(self, what: str) -> list[float]:
        """Return `what` ("examples" or "tokens") a second, one a round."""
        return [answer[what] / answer["seconds"] for answer in self.answers]

    @property
    def peak_mb(self) -> float:
        """The most memory the process has held resident."""
        return max(answer["peak_memory_bytes"] for answer in self.answers) / 1e6


class Arena:
    """Starts engines on one task; closes them when left."""

    def __init__(self, task: PublicTask, scratch: Path, options: argparse.Namespace) -> None:
        self.task, self._scratch = task, scratch
        self._records = task.records(task.splits.train)
        self._environment = {"OMP_NUM_THREADS": str(options.threads)}
        self._overrides: list[str] = options.overrides
        self.entrants: list[Entrant] = []

    def __enter__(self) -> Arena:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        for entrant in self.entrants:
            entrant.worker.close()

    def stock(self, name: str, *, rank: int = 8, save: Path | None = None) -> None:
        """Let the Trainer enter; rank 0 means all weights."""
        rate = self.task.recipe.training.learning_rate if rank else 2e-5
        settings = {"per_device_train_batch_size": STOCK_BATCH, "num_train_epochs": 1, "learning_rate": rate}
        extra = {} if save is None else {"save": str(save)}

        def command(rows: Rows) -> dict[str, Any]:
            return {"rows": self._told(rows), "settings": settings, **extra}

        self._enter(name, "train_stock.py", [*self._shape(), "--rank", str(rank)], command, f"float32, {STOCK_BATCH}")

    def tuned(self, name: str, precision: str) -> None:
        """Let the loop by hand enter, with batches of rows of similar length."""
        dtype = str(compute_dtype(precision)).removeprefix("torch.")

        def command(rows: Rows) -> dict[str, Any]:
            batches = cut(sorted(rows, key=lambda row: len(self._records[row]["ids"])), TUNED_BATCH)
            random.Random(0).shuffle(batches)
            return {"batches": [self._told(batch) for batch in batches]}

        arguments = [*self._shape(), "--dtype", dtype, "--attention", "eager"]
        self._enter(name, "train_loop.py", arguments, command, f"{dtype}, {TUNED_BATCH}")

    def padded(self, name: str) -> None:
        """Let the loop by hand enter with float32, default attention, and batches as the rows come."""

        def command(rows: Rows) -> dict[str, Any]:
            return {"batches": [self._told(batch) for batch in cut(rows, STOCK_BATCH)]}

        arguments = [*self._shape(), "--dtype", "float32", "--attention", "sdpa"]
        self._enter(name, "train_loop.py", arguments, command, f"float32, {STOCK_BATCH}")

    def ours(self, name: str, overrides: Iterable[str] = ()) -> None:
        """Let this trainer enter with one adapter."""
        self._enter_ours(name, overrides, lambda rows: {"jobs": [{"rows": list(rows)}]})

    def ours_on_tasks(self, name: str, *, together: bool) -> None:
        """Let this trainer enter with all of TASKS, to each its share of the rows."""
        batch = TUNED_BATCH // len(TASKS) if together else TUNED_BATCH

        def command(rows: Rows) -> dict[str, Any]:
            shares = zip(TASKS, cut(rows, len(rows) // len(TASKS)), strict=True)
            jobs = [{"rows": share, "overrides": task} for task, share in shares]
            return {"jobs": jobs, "together": together}

        self._enter_ours(name, [f"training.batch_size={batch}"], command)

    def run(self, rounds: int, rows: int, warm_up_rows: int = WARM_UP_STEPS * TUNED_BATCH) -> None:
        """Let all take their rounds in turn."""
        order = list(range(len(self.task.splits.train)))
        random.Random(0).shuffle(order)
        warm_up, shares = order[:warm_up_rows], cut(order[warm_up_rows:], rows)[:rounds]
        if len(shares) < rounds or len(shares[-1]) < rows:
            raise SystemExit(f"{self.task.name} has too few rows for {rounds} rounds of {rows}; ask for fewer --steps")
        for number, share in enumerate(shares):
            for entrant in self.entrants:
                started = time.monotonic()
                entrant.run(warm_up, share)
                rate, loss = entrant.rates("examples")[-1], entrant.answers[-1]["loss"]
                told = f"{rate:.1f} examples/s, loss {loss:.3f}, {time.monotonic() - started:.0f} s in all"
                print(f"round {number}: {entrant.name} {told}", file=sys.stderr, flush=True)

    def _shape(self) -> list[str]:
        return ["--model", str(self.task.base.path), "--labels", str(len(self.task.spec.labels))]

    def _told(self, rows: Rows) -> list[dict[str, Any]]:
        return [self._records[row] for row in rows]

    def _enter_ours(self, name: str, overrides: Iterable[str], command: Callable[[Rows], dict[str, Any]]) -> None:
        given = [*self.task.overrides, *overrides, *self._overrides]
        training = load(self.task.name, given).training
        cache = tempfile.mkdtemp(dir=self._scratch)
        arguments = [
            "--recipe",
            self.task.name,
            "--cache",
            cache,
            *(text for each in given for text in ("--set", each)),
        ]
        precision = str(compute_dtype(training.precision)).removeprefix("torch.")
        self._enter(name, "train_ours.py", arguments, command, f"{precision}, {training.batch_size}")

    def _enter(
        self, name: str, script: str, arguments: list[str], command: Callable[[Rows], dict[str, Any]], setting: str
    ) -> None:
        log = self._scratch / f"{len(self.entrants)}-{script}.log"
        worker = Worker(name, [sys.executable, str(WORKERS / script), *arguments], log, self._environment)
        self.entrants.append(Entrant(name, worker, command, setting))
        print(f"{name}: {worker.about['engine']}, {worker.about['threads']} threads", file=sys.stderr, flush=True)


def cut(rows: Rows, size: int) -> list[list[int]]:
    return [list(rows[low : low + size]) for low in range(0, len(rows), size)]


def speed(scratch: Path, options: argparse.Namespace) -> None:
    with Arena(PublicTask.open("trec6"), scratch, options) as arena:
        arena.stock("stock")
        for precision in options.tuned:
            arena.tuned("tuned" if precision == "auto" else f"tuned-{precision}", precision)
        for name in options.ours:
            arena.ours(name, OURS[name] if name in OURS else name.split(","))
        arena.run(options.rounds, options.steps * TUNED_BATCH)
        against = [each for each in arena.entrants if each.name.startswith(("stock", "tuned"))]
        print_rates(arena.entrants, against, "examples")


def generation(scratch: Path, options: argparse.Namespace) -> None:
    with Arena(PublicTask.open("restaurant8k", CHAT), scratch, options) as arena:
        arena.padded("PEFT loop")
        arena.ours("ours")
        arena.run(options.rounds, options.steps * STOCK_BATCH, WARM_UP_STEPS * STOCK_BATCH)
        print_rates(arena.entrants, arena.entrants[:1], "tokens")


def memory(scratch: Path, options: argparse.Namespace) -> None:
    names = ["full fine-tuning", "stock", *options.ours]
    rows = []
    for name in names:  # one after another: what a process has held needs no turns
        saved = scratch / "saved"
        with Arena(PublicTask.open("trec6"), scratch, options) as arena:
            if name in names[:2]:
                arena.stock(name, rank=0 if name == names[0] else 8, save=saved)
            else:
                arena.ours(name, OURS[name] if name in OURS else name.split(","))
            arena.run(1, 10 * STOCK_BATCH, warm_up_rows=0)
            entrant = arena.entrants[0]
        weights = sum(file.stat().st_size for file in saved.glob("*.safetensors")) if saved.exists() else 0
        weights = weights or entrant.answers[0]["adapter_bytes"]
        rows.append([name, entrant.setting, entrant.peak_mb, weights / 1e6])
        for file in saved.glob("*"):
            file.unlink()
    most = rows[0][2]
    head = ["engine", "dtype, batch", "peak memory", "of full fine-tuning", "on disk"]
    print_table(head, [[n, s, f"{peak:.0f} MB", f"{peak / most:.2f}", f"{size:.1f} MB"] for n, s, peak, size in rows])


def tasks(scratch: Path, options: argparse.Namespace) -> None:
    with Arena(PublicTask.open("trec6"), scratch, options) as arena:
        arena.ours_on_tasks("in turn", together=False)
        arena.ours_on_tasks("together", together=True)
        # Whole batches of 32 for each task in turn.
        arena.run(options.rounds, TUNED_BATCH * len(TASKS) * -(-options.steps // len(TASKS)))
        turns = median(each["seconds"] for each in arena.entrants[0].answers)
        head = [f"{len(TASKS)} adapters", "examples/s", "times in turn", "whole call, s", "peak memory"]
        rows = []
        for each in arena.entrants:
            rates = [answer["examples"] / answer["seconds"] for answer in each.answers]
            ratio = turns / median(answer["seconds"] for answer in each.answers)
            calls = [answer["call_seconds"] for answer in each.answers]
            rows.append([each.name, spread(rates), f"{ratio:.2f}x", spread(calls), f"{each.peak_mb:.0f} MB"])
        print_table(head, rows)


def print_rates(entrants: Sequence[Entrant], against: Sequence[Entrant], what: str) -> None:
    """Print examples and tokens a second, and how many times those of each in `against`, by `what`."""
    head = ["engine", "dtype, batch", "examples/s", "tokens/s", *(f"times {each.name}" for each in against)]
    rows = []
    for each in entrants:
        ratios = [f"{median(each.rates(what)) / median(other.rates(what)):.2f}x" for other in against]
        rates = [spread(each.rates("examples")), spread(each.rates("tokens"))]
        rows.append([each.name, each.setting, *rates, *ratios, before_steps(each), f"{each.peak_mb:.0f} MB"])
    print_table([*head, "before and after the steps, s", "peak memory"], rows)


def before_steps(entrant: Entrant) -> str:
    """Return what a call of this trainer took beside its steps: reading, a trunk to fill (told apart), writing."""
    if "call_seconds" not in entrant.answers[0]:
        return "not measured"
    beside = spread([answer["call_seconds"] - answer["seconds"] for answer in entrant.answers])
    trunk = [answer["results"][0]["trunk_seconds"] for answer in entrant.answers]
    return f"{beside}, of which trunk {spread(trunk)}" if all(trunk) else beside


def spread(values: Iterable[float]) -> str:
    """Return median, least and most."""
    known = list(values)
    return f"{median(known):.1f} ({min(known):.1f} to {max(known):.1f})"


PARTS = {"speed": speed, "memory": memory, "generation": generation, "tasks": tasks}


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="of 32 rows (16 in generation) a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for everybody")
    parser.add_argument("--tuned", nargs="*", choices=["auto", "float32", "bfloat16"], default=["auto"])
    parser.add_argument("--ours", nargs="*", default=list(OURS), help=f"{', '.join(OURS)}, or KEY=VALUE,KEY=VALUE")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="in every recipe of ours")
    options = parser.parse_args()
    print(f"{machine()}; {options.threads} threads each\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts:
            started = time.monotonic()
            print(f"### {part}: medians (least to most)\n", flush=True)
            PARTS[part](Path(scratch), options)
            print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
