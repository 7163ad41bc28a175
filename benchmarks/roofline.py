"""How near decode steps come to the time that reading their bytes takes.

    python benchmarks/roofline.py [--rows 1 16 32] [--adapters 0 8 32] [--rounds 5] [--profile]

Base smollm2-135m-instruct, random adapters of rank 16 on all linear layers. A step reads the base's weights (the
embedding once, as the output layer), the adapters of its rows, and its rows' keys and values. Fraction = those bytes
over the measured bandwidth, over the step's median time, which includes scheduling and sampling. All adapters of a
configuration are resident; where there are fewer rows than adapters, as many are active as there are rows, and only
those are counted. Bandwidth is that of reading 2 GiB, far above any cache, with the same threads, measured anew in
each round. `--profile` tells where the time of each configuration goes instead.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ours import Driven, Heard
from workload import ALL_LINEAR, BASE, Ask, linear_shapes, machine, print_table, random_prompt, write_random_adapter

from adapterhub.base.source import open_base
from adapterhub.engine import decoder, engine, runner
from adapterhub.engine.frozen import FrozenLinear
from adapterhub.engine.scheduler import Limits
from adapterhub.lora.slabs import LoraSlabs

RANK, PROMPT = 16, 64
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


class Bandwidth:
    """Bytes a second at which this process reads memory, with torch's threads."""

    def __init__(self, size: int) -> None:
        self._buffer = torch.ones(size // 4)

    def measure(self, times: int = 5) -> float:
        """Return the best of some readings: others can only take bandwidth away."""
        return max(self._read() for _ in range(times))

    def _read(self) -> float:
        started = time.perf_counter()
        self._buffer.sum()
        return self._buffer.numel() * 4 / (time.perf_counter() - started)


def adapter_bytes(itemsize: int) -> int:
    """Return the bytes of one adapter's matrices."""
    return sum(RANK * (out + into) * itemsize for out, into in linear_shapes(open_base(BASE)).values())


def position_bytes(config: Any, itemsize: int) -> int:
    """Return the bytes of one position's keys and values in all layers."""
    width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    return int(2 * config.num_hidden_layers * width * itemsize)


class Decoding:
    """Rows that decode, for as long as one wants to look."""

    def __init__(self, driven: Driven, rows: int, adapters: int, steps: int, draw: random.Random) -> None:
        self.driven, self.rows = driven, rows
        asks = [
            Ask(random_prompt(draw, PROMPT), i % adapters if adapters else -1, steps + 64 + rows) for i in range(rows)
        ]
        self.heard: list[Heard] = [driven.add(ask) for ask in asks]
        while not all(each.tokens for each in self.heard):
            driven.step()
            for each in self.heard:
                if each.error is not None:
                    raise each.error

    def steps(self, count: int) -> list[float]:
        """Return the seconds of so many steps."""
        found = []
        for _ in range(count):
            started = time.perf_counter()
            self.driven.engine.step()
            found.append(time.perf_counter() - started)
        return found

    @property
    def positions(self) -> int:
        """Positions of the cache that a step reads now."""
        return sum(PROMPT + len(each.tokens) for each in self.heard)

    def end(self) -> None:
        """Give the rows up."""
        for each in self.heard:
            assert each.request is not None
            each.request.cancelled = True
        self.driven.finish()


def make_resident(driven: Driven, adapters: int) -> None:
    """Have the first so many adapters in slots."""
    driven.run([Ask((100, 101), i, 1) for i in range(adapters)])


def open_driven(folders: list[Path], precision: str, options: argparse.Namespace) -> Driven:
    limits = Limits(rows=max(options.rows), chunk_tokens=1024)
    return Driven(folders, precision, limits, max([*options.adapters, 1]), options.threads)


def measure(folders: list[Path], options: argparse.Namespace) -> None:
    """Print fractions for all configurations, rounds in turn."""
    drivens = {name: open_driven(folders, PRECISIONS[name], options) for name in options.precisions}
    bandwidth = Bandwidth(2 << 30)
    cases = list(product(options.precisions, options.rows, options.adapters))
    took: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    reached: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    megabytes: dict[tuple[str, int, int], float] = {}
    speeds: list[float] = []
    for number in range(options.rounds):
        speed = {}
        for name, driven in drivens.items():
            torch.set_num_threads(driven.threads.count)
            speed[name] = bandwidth.measure()
        speeds += speed.values()
        for case in cases:
            name, rows, adapters = case
            driven = drivens[name]
            torch.set_num_threads(driven.threads.count)
            make_resident(driven, adapters)
            decoding = Decoding(driven, rows, adapters, options.steps, random.Random(number))
            decoding.steps(3)
            seconds = median(decoding.steps(options.steps))
            itemsize = driven.dtype.itemsize
            read = driven.base_bytes + min(rows, adapters) * adapter_bytes(itemsize)
            read += decoding.positions * position_bytes(driven.config, itemsize)
            decoding.end()
            took[case].append(seconds)
            reached[case].append(read / speed[name] / seconds)
            megabytes[case] = read / 1e6
    threads = ", ".join(f"{name} {driven.threads.count} ({driven.threads.reason})" for name, driven in drivens.items())
    print(
        f"Bandwidth {median(speeds) / 1e9:.1f} GB/s ({min(speeds) / 1e9:.1f} to {max(speeds) / 1e9:.1f}); {threads}\n"
    )
    print_table(
        ["dtype", "rows", "resident", "active", "MB read", "ms a step", "tokens/s", "fraction", "over that without"],
        [_line(case, took, reached, megabytes) for case in cases],
    )


def _line(case: tuple[str, int, int], took: Any, reached: Any, megabytes: Any) -> list[object]:
    name, rows, adapters = case
    seconds, bare = median(took[case]), reached.get((name, rows, 0))
    ratio = f"{median(a / b for a, b in zip(reached[case], bare, strict=True)):.2f}" if adapters and bare else ""
    fraction = f"{median(reached[case]):.2f} ({min(reached[case]):.2f} to {max(reached[case]):.2f})"
    speed = [f"{megabytes[case]:.0f}", f"{seconds * 1e3:.1f}", f"{rows / seconds:.0f}"]
    return [name, rows, adapters, min(rows, adapters), *speed, fraction, ratio]


@contextmanager
def classes_timed(vocabulary: int, seconds: dict[str, float]) -> Iterator[None]:
    """Add up the time inside the engine's few large functions: operators on a CPU are done when they return."""

    def timed(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                seconds[name(*args)] += time.perf_counter() - started

        return run

    def product_name(layer: FrozenLinear, _: Any) -> str:
        return "output layer" if layer.out_features == vocabulary else "base products"

    places: list[tuple[Any, str, Callable[..., str]]] = [
        (LoraSlabs, "add", lambda *_: "LoRA"),
        (FrozenLinear, "__call__", product_name),
        (decoder, "attend", lambda *_: "attention"),
        (runner.Runner, "run", lambda *_: "forward"),
        (engine.Engine, "step", lambda *_: "step"),
    ]
    plain = [getattr(owner, attribute) for owner, attribute, _ in places]
    for (owner, attribute, name), function in zip(places, plain, strict=True):
        setattr(owner, attribute, timed(function, name))
    try:
        yield
    finally:
        for (owner, attribute, _), function in zip(places, plain, strict=True):
            setattr(owner, attribute, function)


def profile(folders: list[Path], options: argparse.Namespace) -> None:
    """Print where a step's time goes for each configuration, and the profiler's first operators."""
    for name in options.precisions:
        driven = open_driven(folders, PRECISIONS[name], options)
        torch.set_num_threads(driven.threads.count)
        vocabulary = driven.config.vocab_size
        for rows, adapters in product(options.rows, options.adapters):
            make_resident(driven, adapters)
            decoding = Decoding(driven, rows, adapters, 2 * options.steps, random.Random(0))
            seconds: dict[str, float] = defaultdict(float)
            decoding.steps(3)
            with classes_timed(vocabulary, seconds):
                decoding.steps(options.steps)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
                decoding.steps(options.steps)
            decoding.end()
            whole = seconds.pop("step")
            inside = seconds.pop("forward")
            parts = sum(seconds.values())
            seconds["norms, rotation, activation, batch"] = inside - parts
            seconds["scheduling, sampling, events"] = whole - inside
            print(f"### {name}, {rows} rows, {adapters} adapters: {whole / options.steps * 1e3:.1f} ms a step\n")
            lines = sorted(seconds.items(), key=lambda each: -each[1])
            print_table(
                ["where", "ms a step", "share"],
                [[where, f"{t / options.steps * 1e3:.2f}", f"{t / whole:.0%}"] for where, t in lines],
            )
            found = sorted(profiled.key_averages(), key=lambda each: -each.self_cpu_time_total)[: options.top]
            cells = [
                [each.key, f"{each.count / options.steps:.0f}", f"{each.self_cpu_time_total / options.steps / 1e3:.2f}"]
                for each in found
            ]
            print_table(["operator (under the profiler)", "calls a step", "own ms a step"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 8, 32], help="resident ones")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="decode steps looked at, a configuration and round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profile", action="store_true", help="tell where the time goes (a line of each, say)")
    parser.add_argument("--top", type=int, default=12, help="operators of the profile to print")
    options = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        base, root = open_base(BASE), Path(folder)
        count = max([*options.adapters, 1])
        folders = [write_random_adapter(root / f"adapter-{i}", base, i, RANK, ALL_LINEAR) for i in range(count)]
        (profile if options.profile else measure)(folders, options)


if __name__ == "__main__":
    main()
