"""Sixteen concurrent requests over eight adapters: this engine, PEFT and vLLM-CPU, in turn on one machine.

    python benchmarks/peers.py [--vllm-python VENV/bin/python] [--cases equal varied churn] [--rounds 3]

Base smollm2-135m-instruct, random adapters of rank 16 on all linear layers, greedy, end of text ignored, no prefix
cache, new random prompts each round. Cases: `equal`, 128 tokens in and 64 out; `varied`, 16 to 112 in and 64 out;
`churn`, 64 requests of 64 adapters, 16 to 48 in and 8 to 24 out, 16 at once and as many adapters ready, so that at
almost every step one comes and one goes.

Prefill: prompt tokens over the time until every row has its first token. Decode: tokens said after that over the time
after that. Whole: the time until all answers are complete. PEFT and vLLM run all prompts in their first forward; this
engine lets the first rows decode beside the later prompts, so its prefill is that of a run of its own that asks for
one token each. Churn counts wanted tokens over all the time. Each engine is a process of its own, stopped while
another computes. PEFT and vLLM get 1 thread or as many as there are cores, whichever answers a small trial faster;
this engine chooses by itself.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from worker import WORKERS, Worker
from workload import ALL_LINEAR, BASE, Ask, machine, print_table, random_prompt, write_random_adapter

from adapterhub.base.source import open_base

ROWS, ADAPTERS, RANK = 16, 8, 16
CHURN_ADAPTERS = 64
ENGINES = ("ours-bf16", "ours-fp32", "peft-bf16", "peft-fp32", "vllm-bf16", "peft-turns-bf16", "peft-turns-fp32")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def make_asks(case: str, draw: random.Random) -> list[Ask]:
    """Return the requests of one round."""
    if case == "churn":
        order = draw.sample(range(CHURN_ADAPTERS), CHURN_ADAPTERS)
        return [Ask(random_prompt(draw, draw.randint(16, 48)), each, draw.randint(8, 24)) for each in order]
    lengths = [128] * ROWS
    if case == "varied":
        lengths = [16 + round(i * 96 / (ROWS - 1)) for i in range(ROWS)]
        draw.shuffle(lengths)
    return [Ask(random_prompt(draw, length), i % ADAPTERS, 64) for i, length in enumerate(lengths)]


def trial_asks() -> list[Ask]:
    """Return a small round that warms an engine up and tells its threads apart."""
    draw = random.Random(0)
    return [Ask(random_prompt(draw, 32), i % ADAPTERS, 8) for i in range(ROWS)]


def ask_rows(worker: Worker, asks: list[Ask], **options: Any) -> dict[str, Any]:
    """Return what a worker says of a round, after a look at whether each answer has the tokens that were wanted."""
    answer = worker.ask({"rows": [ask.to_record() for ask in asks], "at_once": ROWS, **options})
    wanted, said = [ask.max_tokens for ask in asks], [len(tokens) for tokens in answer["tokens"]]
    if wanted != said:
        raise RuntimeError(f"{worker.name} was asked for {wanted} tokens and said {said}")
    return answer


@dataclass
class Entrant:
    """An engine in the comparison, how it runs best, and what its rounds gave."""

    name: str
    worker: Worker
    threads: int
    trial: str
    options: dict[str, Any] = field(default_factory=dict)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)

    def round(self, asks: list[Ask], *, total_only: bool) -> None:
        """Run one round and keep its rates, in tokens a second."""
        answer = ask_rows(self.worker, asks, total_only=total_only, **self.options)
        said = answer["tokens"]
        self.whole.append(answer["seconds"])
        self.total.append(sum(len(tokens) for tokens in said) / answer["seconds"])
        if not total_only:
            self.prefill.append(sum(len(ask.tokens) for ask in asks) / answer["prefill_seconds"])
            self.decode.append(answer["decode_tokens"] / answer["decode_seconds"])
        self.loading.append(answer.get("loading_seconds", 0.0))
        self.first_tokens += [tokens[0] for tokens in said]


class Arena:
    """Starts engines for one case. `threads` None: the best of 1 and all cores."""

    def __init__(self, scratch: Path, folders: list[Path], slots: int, options: argparse.Namespace) -> None:
        self.scratch, self.folders, self.slots, self.options = scratch, folders, slots, options
        cores = len(os.sched_getaffinity(0))
        self.counts = [options.threads] if options.threads else sorted({1, cores})

    def enter(self, name: str) -> Entrant:
        """Start an engine by its name in ENGINES."""
        engine, dtype = name.partition("-")[0], DTYPES[name.rpartition("-")[2]]
        if engine == "ours":
            return self._ours(name, dtype)
        return self._vllm(name, dtype) if engine == "vllm" else self._peft(name, dtype)

    def _command(self, python: str, script: str, dtype: str) -> list[str]:
        return [python, str(WORKERS / script), "--dtype", dtype, "--adapters", *map(str, self.folders)]

    def _ours(self, name: str, dtype: str) -> Entrant:
        command = [*self._command(sys.executable, "serve_ours.py", dtype), "--slots", str(self.slots)]
        if self.options.threads:
            command += ["--threads", str(self.options.threads)]
        worker = Worker(name, command, self.scratch / f"{name}.log")
        ask_rows(worker, trial_asks())
        return Entrant(name, worker, worker.about["threads"], "its own choice")

    def _peft(self, name: str, dtype: str) -> Entrant:
        command = self._command(sys.executable, "serve_peft.py", dtype)
        command += ["--model", str(open_base(BASE).path), "--keep", str(self.slots)]
        command += ["--turns"] if "turns" in name else []
        worker = Worker(name, command, self.scratch / f"{name}.log")
        ask_rows(worker, trial_asks())
        took = {count: ask_rows(worker, trial_asks(), threads=count)["seconds"] for count in self.counts}
        best = min(took, key=lambda count: took[count])
        return Entrant(name, worker, best, _told(took), {"threads": best})

    def _vllm(self, name: str, dtype: str) -> Entrant:
        command = self._command(self.options.vllm_python, "serve_vllm.py", dtype)
        command += ["--model", str(open_base(BASE).path), "--slots", str(self.slots), "--rank", str(RANK)]
        found: dict[int, tuple[float, Worker]] = {}
        for count in self.counts:
            worker = Worker(name, command, self.scratch / f"{name}-{count}.log", self._vllm_environment(count))
            ask_rows(worker, trial_asks())
            found[count] = (ask_rows(worker, trial_asks())["seconds"], worker)
        best = min(found, key=lambda count: found[count][0])
        for count, (_, worker) in found.items():
            if count != best:
                worker.close()
        worker = found[best][1]
        return Entrant(
            name, worker, worker.about["threads"], _told({count: took for count, (took, _) in found.items()})
        )

    def _vllm_environment(self, threads: int) -> dict[str, str]:
        """Return what vLLM's CPU guide asks for: Intel's OpenMP from its own environment, threads bound to cores."""
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        found = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        preload = [str(path) for path in self.options.vllm_preload]
        openmp = Path(self.options.vllm_python).parents[1] / "lib" / "libiomp5.so"
        if openmp.is_file():
            preload.append(str(openmp))
            listed = ",".join(map(str, cores))
            found |= {"KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{listed}]", "KMP_BLOCKTIME": "5"}
        return found | ({"LD_PRELOAD": ":".join(preload)} if preload else {})


def _told(took: dict[int, float]) -> str:
    return ", ".join(f"{seconds:.1f} s with {count}" for count, seconds in took.items())


def compare(case: str, base_folders: list[Path], scratch: Path, options: argparse.Namespace) -> None:
    """Run one case and print its table."""
    churn = case == "churn"
    folders = base_folders if churn else base_folders[:ADAPTERS]
    arena = Arena(scratch, folders, 16 if churn else ADAPTERS, options)
    entrants: list[Entrant] = []
    started = time.monotonic()
    try:
        for name in options.engines:
            entrants.append(arena.enter(name))
            print(f"{name}: {entrants[-1].worker.about['engine']}; trial: {entrants[-1].trial}", file=sys.stderr)
        ours = [each for each in entrants if each.name.startswith("ours")]
        others = [each for each in entrants if not each.name.startswith("ours")]
        for number in range(options.rounds):
            asks = make_asks(case, random.Random(1000 + number))
            for entrant in [*ours, *others]:
                entrant.round(asks, total_only=churn)
                print(f"round {number}: {entrant.name} {entrant.total[-1]:.1f} tokens/s", file=sys.stderr)
    finally:
        for entrant in entrants:
            entrant.worker.close()
    seconds = time.monotonic() - started
    print(f"### {case}: medians of {options.rounds} rounds (least to most), {seconds:.0f} s in all\n")
    (print_churn if churn else print_rates)(entrants)


def print_rates(entrants: list[Entrant]) -> None:
    """Print prefill and decode, and how many times those of each peer ours are."""
    ours = [each for each in entrants if each.name.startswith("ours")]
    head = ["engine", "threads", "prefill tokens/s", "decode tokens/s", "whole, s"]
    head += [f"{each.name}: prefill, decode, whole" for each in ours] + ["same first token"]
    rows = []
    for each in entrants:
        ratios = [
            ", ".join(
                (_ratio(our.prefill, each.prefill), _ratio(our.decode, each.decode), _ratio(each.whole, our.whole))
            )
            for our in ours
        ]
        rates = [_spread(each.prefill), _spread(each.decode), _spread(each.whole)]
        rows.append([each.name, each.threads, *rates, *ratios, _agree(each, entrants)])
    print_table(head, rows)


def print_churn(entrants: list[Entrant]) -> None:
    """Print all wanted tokens over all time."""
    ours = [each for each in entrants if each.name.startswith("ours")]
    head = ["engine", "threads", "tokens/s", *(each.name for each in ours), "loading a round", "same first token"]
    rows = []
    for each in entrants:
        loading = f"{median(each.loading):.1f} s" if any(each.loading) else "beside the steps"
        ratios = [_ratio(our.total, each.total) for our in ours]
        rows.append([each.name, each.threads, _spread(each.total), *ratios, loading, _agree(each, entrants)])
    print_table(head, rows)


def _spread(rates: list[float]) -> str:
    return f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"


def _ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{median(ours) / median(theirs):.2f}x"


def _agree(each: Entrant, entrants: list[Entrant]) -> str:
    """Return how many first tokens are those of PEFT in float32: all do the same work, with all adapters."""
    reference = next((other for other in entrants if other.name == "peft-fp32"), entrants[0])
    same = sum(a == b for a, b in zip(each.first_tokens, reference.first_tokens, strict=True))
    return f"{same} of {len(each.first_tokens)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=["equal", "varied", "churn"], default=["equal"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES[:5]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="for everybody; default: each engine's best")
    parser.add_argument("--vllm-python", help="the interpreter of an environment with vllm-cpu")
    parser.add_argument("--vllm-preload", type=Path, nargs="*", default=[], help="further libraries, such as tcmalloc")
    options = parser.parse_args()
    if options.vllm_python is None and any(name.startswith("vllm") for name in options.engines):
        print("vLLM is left out: no --vllm-python was given", file=sys.stderr)
        options.engines = [name for name in options.engines if not name.startswith("vllm")]
    if options.threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)  # each engine chooses; the trial sets the others'
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch, base = Path(folder), open_base(BASE)
        count = CHURN_ADAPTERS if "churn" in options.cases else ADAPTERS
        names = [scratch / f"adapter-{i}" for i in range(count)]
        folders = [write_random_adapter(name, base, i, RANK, ALL_LINEAR) for i, name in enumerate(names)]
        for case in options.cases:
            compare(case, folders, scratch, options)


if __name__ == "__main__":
    main()
