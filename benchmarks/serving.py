"""What a server does under load: latency by arrival rate, one key's flood beside another key, and sizes.

    python benchmarks/serving.py latency [--seconds 60] [--plot benchmarks/latency.png]
    python benchmarks/serving.py flood [--rounds 3]
    python benchmarks/serving.py sizes [--seconds 20]

Each starts `adapterhub serve` over random adapters (rank 8 on all linear layers) and asks it over a real socket from a
process of its own; new random prompts, no prefix cache, greedy, end of text ignored. `--cpus` are the server's
cores, `--client-cpus` those of whoever asks.

latency  `adapterhub bench serve`, Zipf over 8 adapters: percentiles against rising arrival rates, up to saturation. The
         rates are parts of what 32 askers at once get through, which is measured first
flood    key B asks now and then, alone and while key A has `--flood` requests under way: for the same adapter,
         for another, and for all eight. What the flood loses is measured too: its tokens a second without B and with B
sizes    1 to 32 askers at once: tokens a second, waits, and the process's resident set
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from load.served import Served, served
from workload import ALL_LINEAR, BASE, machine, print_table, publish_random_tasks

from adapterhub.base.source import open_base
from adapterhub.bench.drive import Drive, Load
from adapterhub.bench.endpoint import Endpoint
from adapterhub.bench.run import bench
from adapterhub.bench.summary import percentile
from adapterhub.bench.timing import Timing, ask_once
from adapterhub.bench.workload import Popularity, Workload
from adapterhub.registry.store import Registry
from adapterhub.server.keys import KeyFile

PARTS_OF_CAPACITY = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3)


@dataclass(frozen=True)
class Stage:
    """A server that runs, what can be asked, and for whom: endpoints of two keys."""

    server: Served
    models: tuple[str, ...]
    loud: Endpoint
    quiet: Endpoint


@contextmanager
def stage(options: argparse.Namespace) -> Iterator[Stage]:
    """Publish adapters and serve them until the block ends."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        registry, base = Registry(root / "registry"), open_base(options.base)
        models = tuple(publish_random_tasks(registry, base, options.adapters, 8, ALL_LINEAR))
        keys = KeyFile(root / "keys.json")
        loud, quiet = (keys.create(name)[1] for name in ("loud", "quiet"))
        given = ["--registry", str(registry.root), "--base", base.name, "--keys", str(keys.path), "--prefix-cache", "0"]
        given += ["--adapters", ",".join(models), *(["--threads", options.threads] if options.threads else [])]
        with served(given, options.cpus) as server:
            url = f"http://127.0.0.1:{server.port}"
            yield Stage(server, models, Endpoint.parse(url, loud), Endpoint.parse(url, quiet))
            status = server.end()
            if status:
                raise RuntimeError(f"the server ended with {status}:\n" + "\n".join(server.said))


def workload(models: Sequence[str], options: argparse.Namespace, seed: int = 0) -> Workload:
    """Return what is asked of these models."""
    return Workload(
        tuple(models), Popularity.ZIPF, options.prompt_words, options.max_tokens, ignore_eos=True, seed=seed
    )


def milliseconds(values: Sequence[float]) -> str:
    """Return the percentiles of seconds, in milliseconds."""
    return " / ".join(f"{percentile(values, percent) * 1e3:.0f}" for percent in (50, 90, 99))


def latency(on: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """Run `adapterhub bench serve` at rising rates, and return what it printed."""
    asked = workload(on.models, options, seed=1000)
    full = bench(on.loud, asked, [Load(None, 32, None, options.seconds)]).runs[0].requests_per_second
    rates = ",".join(f"{part * full:.3g}" for part in PARTS_OF_CAPACITY)
    print(f"32 askers at once get {full:.2f} requests/s answered; rates {rates}", file=sys.stderr)
    command = [sys.executable, "-m", "adapterhub", "bench", "serve", on.loud.url, "--key-variable", "LOUD"]
    command += ["--models", ",".join(on.models), "--rates", rates, "--seconds", str(options.seconds)]
    command += ["--prompt-words", str(options.prompt_words), "--max-tokens", str(options.max_tokens)]
    command += ["--ignore-eos", "--json"]
    command += ["--plot", str(options.plot)] if options.plot else []
    environment = {**os.environ, "LOUD": on.loud.key or ""}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    record: dict[str, Any] = {"capacity": full, **json.loads(found.stdout)}
    rows = []
    for run in record["runs"]:
        spreads = [run[name] for name in ("first_token_seconds", "token_seconds", "latency_seconds")]
        told = [" / ".join(f"{each[p] * 1e3:.0f}" for p in ("p50", "p90", "p99")) if each else "" for each in spreads]
        rows.append([f"{run['rate']:.3g}", run["sent"], *told, "yes" if run["saturated"] else ""])
    head = ["arrive a second", "requests", "first token, ms", "a token after it, ms", "whole, ms", "saturated"]
    print_table(head, rows)
    return record


def flood(on: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """Measure key B alone and under key A's flood, in turn."""
    return asyncio.run(_flood(on, options))


async def _flood(on: Stage, options: argparse.Namespace) -> dict[str, Any]:
    first, *others = on.models
    floods = {"alone": (), "same adapter": (first,), "another adapter": (others[0],), "all adapters": on.models}
    took: dict[str, list[Timing]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    for number in range(options.rounds):
        for place, (name, models) in enumerate(floods.items()):
            seed = 100 * number + 10 * place
            drive = None
            if models:
                asked = replace(workload(models, options, seed), popularity=Popularity.UNIFORM)
                drive = Drive(on.loud, asked, Load(None, options.flood, None, math.inf))
            async with asyncio.TaskGroup() as group:
                pouring = group.create_task(drive.run()) if drive else None
                if drive is not None:
                    await asyncio.sleep(options.warm)
                    rates[f"{name}, before B"].append(await _rate(drive, options.warm))
                begun = time.perf_counter()
                took[name] += await _ask(on.quiet, workload((first,), options, seed + 5), options.asks)
                if drive is not None:
                    rates[f"{name}, beside B"].append(_tokens(drive, begun, time.perf_counter()))
                if pouring is not None:
                    pouring.cancel()
            await asyncio.sleep(1.0)
    return _told(took, rates)


async def _rate(drive: Drive, seconds: float) -> float:
    """Return the flood's tokens a second over the next `seconds`."""
    begun = time.perf_counter()
    await asyncio.sleep(seconds)
    return _tokens(drive, begun, time.perf_counter())


def _tokens(drive: Drive, begun: float, ended: float) -> float:
    """Return tokens a second of answers, each spread evenly over its time."""
    origin = drive._begin
    total = 0.0
    for each in drive.timings:
        low, high = max(each.start + origin, begun), min(each.end + origin, ended)
        total += each.tokens * max(0.0, high - low) / max(each.latency, 1e-9)
    return total / (ended - begun)


async def _ask(endpoint: Endpoint, asked: Workload, count: int) -> list[Timing]:
    """Ask one after another, with a pause between."""
    found, begun = [], time.perf_counter()
    for _, ask in zip(range(count), asked.asks(), strict=False):
        await asyncio.sleep(0.2)
        now = time.perf_counter() - begun
        timing = await ask_once(endpoint, ask, now, lambda: time.perf_counter() - begun, 600.0)
        if timing.error is not None:
            raise RuntimeError(f"{timing.error}: {timing.message}")
        found.append(timing)
    return found


def _told(took: dict[str, list[Timing]], rates: dict[str, list[float]]) -> dict[str, Any]:
    """Print both tables and return the record."""
    alone = median(each.latency for each in took["alone"])
    first = median(each.first_token or 0.0 for each in took["alone"])
    rows, record = [], {}
    for name, timings in took.items():
        whole, begun = [each.latency for each in timings], [each.first_token or 0.0 for each in timings]
        ratios = [median(whole) / alone, median(begun) / first]
        record[name] = {"whole": whole, "first_token": begun, "over_alone": ratios[0], "first_over_alone": ratios[1]}
        rows.append(
            [name, len(whole), milliseconds(whole), f"{ratios[0]:.2f}", milliseconds(begun), f"{ratios[1]:.2f}"]
        )
    head = ["key A's flood", "requests of B", "whole, ms", "over alone", "first token, ms", "over alone"]
    print_table(head, rows)
    print_table(["the flood", "its tokens/s"], [[name, f"{median(each):.0f}"] for name, each in rates.items()])
    return {"latency": record, "flood_tokens_per_second": rates}


def sizes(on: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """Measure so many askers at once, and the process after each."""
    rows, records = [], []
    before = on.server.sample()
    for place, askers in enumerate((1, 2, 4, 8, 16, 32)):
        run = bench(on.loud, workload(on.models, options, place), [Load(None, askers, None, options.seconds)]).runs[0]
        resident = on.server.sample().resident
        records.append({**run.to_record(), "resident_mb": resident})
        spreads = [[value for value in map(read, run.answered) if value is not None] for read in READS]
        told = [milliseconds(values) if values else "" for values in spreads]
        tokens = f"{run.tokens_per_second:.0f}"
        rows.append([askers, f"{run.requests_per_second:.2f}", tokens, *told, f"{resident:.0f}"])
    head = ["askers", "requests/s", "tokens/s", "first token, ms", "a token after it, ms", "whole, ms", "resident, MB"]
    print_table(head, rows)
    print(f"resident set before the first request: {before.resident:.0f} MB\n")
    return {"before_mb": before.resident, "runs": records}


READS: tuple[Callable[[Timing], float | None], ...] = (
    lambda each: each.first_token,
    lambda each: each.token,
    lambda each: each.latency,
)
PARTS: dict[str, Callable[[Stage, argparse.Namespace], dict[str, Any]]] = {
    "latency": latency,
    "flood": flood,
    "sizes": sizes,
}


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--prompt-words", type=int, default=48, help="of each prompt, a quarter more or less")
    parser.add_argument("--max-tokens", type=int, default=32, help="of each answer, exactly")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load of latency and sizes")
    parser.add_argument("--rounds", type=int, default=3, help="of flood")
    parser.add_argument("--asks", type=int, default=5, help="of key B in each round")
    parser.add_argument("--flood", type=int, default=64, help="requests of key A under way")
    parser.add_argument("--warm", type=float, default=10.0, help="seconds before B asks, and of the flood's own rate")
    parser.add_argument("--cpus", help="cores of the server, as taskset takes them")
    parser.add_argument("--client-cpus", help="cores of whoever asks")
    parser.add_argument("--threads", help="the server's --threads")
    parser.add_argument("--plot", type=Path, help="latency: draw to this PNG")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    options = parser.parse_args()
    print(f"### {options.part}\n\n{machine()}\n", flush=True)
    with stage(options) as on:
        if options.client_cpus:
            with suppress(AttributeError):
                os.sched_setaffinity(0, _cpus(options.client_cpus))
        record = PARTS[options.part](on, options)
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), **record}, indent=1, default=float) + "\n")


def _cpus(text: str) -> set[int]:
    """Return the numbers in a list such as "0-1,3"."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


if __name__ == "__main__":
    main()
