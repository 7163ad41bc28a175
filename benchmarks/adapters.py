"""What many adapters cost: registered, cold, switched, more than memory holds; and who waits for whom.

    python benchmarks/adapters.py [--parts registered cold switching memory stall fairness] [--rounds 3]

Base smollm2-135m-instruct, random adapters, greedy, end of text ignored, no prefix cache, new random prompts. Parts:

registered  tokens a second with 1, 8, 64 and 512 adapters registered (rank 16 on q and v, all alike), requests spread
            by Zipf's law (s = 1), 16 at once, 64 tokens in and 32 out; 32 adapters resident, 1 GiB of others in memory
cold        time to the first token of an adapter never asked before, against the same one asked again at once (rank 16
            on all linear layers, stored in float32 and in bfloat16; files are in the system's cache)
switching   requests one after another, of 8 resident adapters in turn against always the same one
memory      1,000 adapters (rank 4 on q and v) in random order, 8 resident, 64 MiB of others in memory: the process's
            resident set
stall       the longest time between tokens of 8 rows while a prompt of 2,000 tokens arrives, in chunks and whole
fairness    a quiet adapter's requests under another's flood: queued by adapter, as two keys, in one queue, and alone

The first four go through AdapterHub and a registry on disk, the last two drive the engine itself. Each part runs in a
process of its own.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import torch
from ours import Driven, Heard
from workload import (
    ALL_LINEAR,
    BASE,
    Q_AND_V,
    Ask,
    machine,
    print_table,
    publish_random_tasks,
    random_prompt,
    write_random_adapter,
)

from adapterhub import AdapterHub
from adapterhub.base.source import open_base
from adapterhub.engine.scheduler import Limits
from adapterhub.registry.store import Registry
from adapterhub.runtime.stream import Chunk
from adapterhub.runtime.target import GenerationRequest

MIB = 1 << 20


def resident_mb() -> float:
    """Return the resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def request(draw: random.Random, size: int, max_tokens: int) -> GenerationRequest:
    """Return a request with a new random prompt."""
    tokens = random_prompt(draw, size)
    return GenerationRequest(token_ids=tokens, max_tokens=max_tokens, ignore_eos=True, temperature=0.0)


class Asker:
    """Asks a hub, so many requests at once, and keeps the first error."""

    def __init__(self, hub: AdapterHub, at_once: int) -> None:
        self._hub, self._at_once = hub, at_once
        self._free = threading.Semaphore(at_once)
        self._error: Exception | None = None

    def ask(self, ref: str, asked: GenerationRequest) -> None:
        """Start a request as soon as there is room."""
        self._free.acquire()
        if self._error is not None:
            raise self._error
        self._hub.generate(self._hub.target(ref), asked).subscribe(self._listen)

    def finish(self) -> None:
        """Wait for everything asked."""
        for _ in range(self._at_once):
            self._free.acquire()
        for _ in range(self._at_once):
            self._free.release()
        if self._error is not None:
            raise self._error

    def run(self, refs: Iterable[str], make: Callable[[], GenerationRequest]) -> float:
        """Return the seconds that a request of each of `refs` takes, all together."""
        started = time.perf_counter()
        for ref in refs:
            self.ask(ref, make())
        self.finish()
        return time.perf_counter() - started

    def _listen(self, chunk: Chunk | Exception) -> None:
        if isinstance(chunk, Exception):
            self._error = self._error or chunk
        if isinstance(chunk, Exception) or chunk.finish_reason is not None:
            self._free.release()


def first_token_seconds(hub: AdapterHub, ref: str, asked: GenerationRequest) -> float:
    """Return the time from a ref to its first token."""
    started = time.perf_counter()
    stream = hub.generate(hub.target(ref), asked)
    next(iter(stream))
    seconds = time.perf_counter() - started
    stream.result()
    return seconds


def registered(root: Path, options: argparse.Namespace) -> None:
    counts = options.counts
    registry = Registry(root / "registry")
    started = time.monotonic()
    refs = publish_random_tasks(registry, open_base(BASE), max(counts), 16, Q_AND_V)
    print(f"{len(refs)} adapters published in {time.monotonic() - started:.0f} s", file=sys.stderr)
    rates: dict[int, list[float]] = defaultdict(list)
    with AdapterHub(BASE, registry, precision=options.precision, threads=options.threads, prefix_bytes=0) as hub:
        asker = Asker(hub, 16)
        draw = random.Random(1)
        asker.run(refs[:16], lambda: request(draw, 64, 2))
        for _ in range(options.rounds):
            for count in counts:
                weights = [1 / (place + 1) for place in range(count)]
                chosen = draw.choices(refs[:count], weights, k=options.requests)
                seconds = asker.run(chosen, lambda: request(draw, 64, 32))
                rates[count].append(options.requests * 32 / seconds)
        stats = hub.stats()
    bare = rates.get(8) or rates[counts[0]]
    print(f"{stats['adapter_reads']:.0f} reads from disk, {stats['adapter_loads']:.0f} loads into slots in all\n")
    print_table(
        ["registered", "tokens/s", f"of that with {8 if 8 in rates else counts[0]}"],
        [[count, spread(rates[count]), f"{median(rates[count]) / median(bare):.2f}"] for count in counts],
    )


def cold(root: Path, options: argparse.Namespace) -> None:
    base, registry = open_base(BASE), Registry(root / "registry")
    stored = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    refs = {
        name: publish_random_tasks(registry, base, options.cold, 16, ALL_LINEAR, name=f"cold-{name}", dtype=dtype)
        for name, dtype in stored.items()
    }
    draw, rows = random.Random(2), []
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with AdapterHub(BASE, registry, precision=options.precision, threads=options.threads, prefix_bytes=0) as hub:
        first_token_seconds(hub, BASE, request(draw, 64, 2))
        for pair in zip(*refs.values(), strict=True):
            for name, ref in zip(refs, pair, strict=True):
                seconds = [first_token_seconds(hub, ref, request(draw, 64, 1)) for _ in range(3)]
                took[name].append((seconds[0], seconds[2]))
    for name, pairs in took.items():
        first, again = median(a for a, _ in pairs), median(b for _, b in pairs)
        gap = [(a - b) * 1e3 for a, b in pairs]
        rows.append([name, len(pairs), f"{first * 1e3:.1f} ms", f"{again * 1e3:.1f} ms", spread(gap) + " ms"])
    print_table(["stored in", "adapters", "first token, cold", "hot", "difference"], rows)


def switching(root: Path, options: argparse.Namespace) -> None:
    registry = Registry(root / "registry")
    refs = publish_random_tasks(registry, open_base(BASE), 8, 16, ALL_LINEAR)
    draw = random.Random(3)
    same: list[float] = []
    turns: list[float] = []
    with AdapterHub(BASE, registry, precision=options.precision, threads=options.threads, prefix_bytes=0) as hub:
        asker = Asker(hub, 1)
        asker.run(refs, lambda: request(draw, 64, 2))
        for number in range(2 * options.rounds):
            fixed = [refs[number % 8]] * 16
            same.append(asker.run(fixed, lambda: request(draw, 64, 16)) / 16 * 1e3)
            turns.append(asker.run(refs * 2, lambda: request(draw, 64, 16)) / 16 * 1e3)
    print_table(
        ["", "ms a request (64 in, 16 out)", "over the same"],
        [
            ["always the same adapter", spread(same), ""],
            ["8 in turn", spread(turns), f"{median(b / a for a, b in zip(same, turns, strict=True)):.3f}"],
        ],
    )


def memory(root: Path, options: argparse.Namespace) -> None:
    registry = Registry(root / "registry")
    started = time.monotonic()
    refs = publish_random_tasks(registry, open_base(BASE), options.many, 4, Q_AND_V)
    print(f"{len(refs)} adapters published in {time.monotonic() - started:.0f} s", file=sys.stderr)
    draw, rows = random.Random(4), []
    sizes = {"resident": 8, "host_bytes": 64 * MIB, "prefix_bytes": 0}
    part = max(1, options.many // 10)
    with AdapterHub(BASE, registry, precision=options.precision, threads=options.threads, **sizes) as hub:
        asker = Asker(hub, 8)
        for turn in range(2):
            order = draw.sample(refs, len(refs))
            for low in range(0, len(order), part):
                seconds = asker.run(order[low : low + part], lambda: request(draw, 16, 4))
                stats = hub.stats()
                reads, host = stats["adapter_reads"], stats["host_bytes"] / MIB
                served = turn * len(order) + min(low + part, len(order))
                rows.append([served, f"{resident_mb():.0f}", f"{host:.0f}", f"{reads:.0f}", f"{part / seconds:.0f}"])
    print_table(["requests", "resident set, MB", "adapters in memory, MiB", "reads from disk", "requests/s"], rows)


def folders_for(root: Path, count: int, rank: int = 16) -> list[Path]:
    base = open_base(BASE)
    return [write_random_adapter(root / f"adapter-{i}", base, i, rank, ALL_LINEAR) for i in range(count)]


def stall(root: Path, options: argparse.Namespace) -> None:
    folders, size = folders_for(root, 8), options.long_prompt
    whole = Limits(rows=16, step_tokens=4096, chunk_tokens=4096)
    kinds = {"128 a step": Limits(rows=16), "whole": whole}
    drivens = {name: Driven(folders, options.precision, limits, 8, options.threads) for name, limits in kinds.items()}
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for number in range(options.rounds):
        for name, driven in drivens.items():
            torch.set_num_threads(driven.threads.count)
            found[name].append(_stall(driven, size, random.Random(number)))
    print_table(
        ["the prompt enters", "usual gap, ms", f"longest gap beside {size} tokens, ms", "their first token, s"],
        [
            [name, spread([1e3 * u for u in usual]), spread([1e3 * g for g in gaps]), f"{median(firsts):.2f}"]
            for name, (usual, gaps, firsts) in ((name, zip(*each, strict=True)) for name, each in found.items())
        ],
    )


def _stall(driven: Driven, size: int, draw: random.Random) -> tuple[float, float, float]:
    """Return the usual gap between tokens, the longest beside the prompt, and the time to the prompt's first token."""
    heard = [driven.add(Ask(random_prompt(draw, 32), i, 200), None) for i in range(8)]
    while not all(len(each.tokens) > 10 for each in heard):
        driven.step()
    usual = median(b - a for each in heard for a, b in zip(each.times[2:], each.times[3:], strict=False))
    arrived = time.perf_counter()
    late = driven.add(Ask(random_prompt(draw, size), 0, 2), "late")
    while not late.done:
        driven.step()
    told = late.times[0]
    end(driven, heard)
    gaps = [b - a for each in heard for a, b in zip(each.times, each.times[1:], strict=False) if b > arrived]
    return usual, max(gaps), told - arrived


def end(driven: Driven, heard: Sequence[Heard]) -> None:
    """Give requests up."""
    for each in heard:
        assert each.request is not None
        each.request.cancelled = True
    driven.finish()


def fairness(root: Path, options: argparse.Namespace) -> None:
    driven = Driven(folders_for(root, 2), options.precision, Limits(rows=16), 8, options.threads)
    seconds: dict[str, list[float]] = defaultdict(list)
    driven.run([Ask((100, 101), i, 1) for i in range(2)])
    for number in range(options.rounds):
        draw = random.Random(number)
        seconds["alone"] += _quiet(driven, draw, flood=0, share=None)
        seconds["flood, queued by adapter"] += _quiet(driven, draw, flood=options.flood, share=None)
        seconds["flood, another key's"] += _quiet(driven, draw, flood=options.flood, share=None, keys=True)
        seconds["flood, one queue for all"] += _quiet(driven, draw, flood=options.flood, share="everybody")
    alone = median(seconds["alone"])
    rows = [[name, len(took), f"{spread(took)} s", f"{median(took) / alone:.1f}"] for name, took in seconds.items()]
    print_table(["", "requests", "seconds a request", "over alone"], rows)


def _quiet(driven: Driven, draw: random.Random, flood: int, share: str | None, *, keys: bool = False) -> list[float]:
    """Return the seconds of a quiet adapter's requests, one after another, while `flood` of another's are in hand."""
    others: list[Heard] = []
    loud, quiet = ("loud", "quiet") if keys else (None, None)

    def pour() -> None:
        others[:] = [each for each in others if not each.done]
        while len(others) < flood:
            others.append(driven.add(Ask(random_prompt(draw, 64), 0, draw.randint(16, 32)), share, loud))

    pour()
    for _ in range(8 if flood else 0):
        driven.step()
    found = []
    for _ in range(3):
        started = time.perf_counter()
        asked = driven.add(Ask(random_prompt(draw, 64), 1, 16), share, quiet)
        while not asked.done:
            pour()
            driven.step()
        if asked.error is not None:
            raise asked.error
        found.append(time.perf_counter() - started)
    end(driven, others)
    return found


def spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "registered": registered,
    "cold": cold,
    "switching": switching,
    "memory": memory,
    "stall": stall,
    "fairness": fairness,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 64, 512], help="registered adapters")
    parser.add_argument("--requests", type=int, default=64, help="of one round with registered adapters")
    parser.add_argument("--cold", type=int, default=24, help="cold adapters of each stored dtype")
    parser.add_argument("--many", type=int, default=1000, help="adapters of the memory part")
    parser.add_argument("--long-prompt", type=int, default=2000)
    parser.add_argument("--flood", type=int, default=32, help="requests of the flooding adapter in hand at any time")
    options = parser.parse_args()
    if len(options.parts) > 1:
        given = sys.argv[1:]
        if "--parts" in given:
            start = given.index("--parts")
            del given[start : start + 1 + len(options.parts)]
        for part in options.parts:
            subprocess.run([sys.executable, __file__, *given, "--parts", part], check=True)
        return
    part = options.parts[0]
    print(f"### {part}\n\n{machine()}\n", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        PARTS[part](Path(folder), options)
    print(f"{part}: {time.monotonic() - started:.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
