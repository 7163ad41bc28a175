"""Minutes of everything at once against a real `adapterhub serve`, and whether anything went wrong.

    python benchmarks/soak.py [--seconds 600] [--out soak.json] [--plot benchmarks/soak.png]

Clients ask for texts (whole and as streams, one choice or several), labels and vectors; load, pin and unload adapters;
leave in the middle of a stream or while an adapter is read; read a byte a second; send what is malformed, too large,
unknown or forbidden; ask adapters that were changed after they were published, that are not finite, or that overflow;
and spend quotas. Meanwhile versions are published and `prod` is moved. At the end the server is told to stop under
load. Then each answer is compared with the reference (see load/judge.py), by the digest that the server named.

Exits with 1 where an answer was wrong, a request got no answer or another than it must, memory rose, or the end was not
clean. In float32 ε is 2e-3 logits, 1e-4 of the largest logit of the default base, as the engine's own tests hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load.crowd import Crowd, Keys
from load.exchange import Lost, exchange, head_of, opened
from load.judge import Judge, Verdict
from load.report import draw, memory_of, rows_of
from load.served import Served, served
from load.tally import Tally
from load.world import World, make_world
from workload import BASE, machine, print_table

from adapterhub.base.load import compute_dtype
from adapterhub.base.source import Base, open_base
from adapterhub.server.keys import KeyFile

BODY_BYTES = 256 * 1024
LAST = 6


@dataclass(frozen=True)
class Soak:
    """How long and how much. `pause` seconds lie between changes of the registry."""

    seconds: float
    writers: int = 8
    times: int = 1
    pause: float = 3.0
    epsilon: float = 2e-3
    tolerance: float = 1e-3
    cpus: str | None = None
    options: tuple[str, ...] = ()


def make_keys(path: Path) -> Keys:
    """Write a file of keys and return their texts."""
    file = KeyFile(path)

    def made(name: str, **rights: Any) -> str:
        return file.create(name, **rights)[1]

    return Keys(
        tuple(made(f"user-{number}") for number in range(3)),
        made("admin", admin=True),
        made("narrow", tasks=("writer-0",)),
        made("poor", tokens_per_day=300),
        made("rushed", requests_per_minute=5),
    )


def change(world: World, stop: threading.Event, pause: float, wrong: list[str]) -> None:
    """Publish versions and move aliases until `stop` is set, as people do by the command line meanwhile."""
    draw_ = random.Random(11)
    while not stop.wait(pause * draw_.random() * 2):
        try:
            task = draw_.choice(world.writers)
            if draw_.random() < 0.4:
                world.publish(task)
            world.promote(task, draw_)
        except Exception as error:
            wrong.append(f"change: {error!r}")


async def stop_under_load(crowd: Crowd, server: Served, tally: Tally) -> int:
    """Tell the server to stop while it answers: it finishes what runs and refuses the rest; return its exit status."""
    begun = asyncio.Event()
    waiting = [LAST]

    async def last() -> None:
        body = {"model": crowd.world.writers[0], "prompt": "At last", "max_tokens": 24, "ignore_eos": True}
        with tally.request("last"):
            async with opened(
                server.port, "POST", "/v1/completions", {**body, "stream": True, "temperature": 0}, crowd.user
            ) as reader:
                status, _ = await head_of(reader)
                waiting[0] -= 1
                if not waiting[0]:
                    begun.set()
                rest = await reader.read(-1)
            if status != 200 or b"data: [DONE]" not in rest:
                raise AssertionError(f"{status}, {rest[-200:]!r}")
            tally.answered["last"] += 1

    async def signal() -> int:
        await begun.wait()
        ending = asyncio.create_task(asyncio.to_thread(server.end))
        while not ending.done():
            # The door is open or closed; who comes in now is told that the server stops.
            with suppress(Lost):
                answer = await exchange(server.port, "GET", "/ready", seconds=5)
                if answer.status not in (200, 503):
                    tally.wrong.append(f"/ready while stopping: {answer.status}")
            await asyncio.sleep(0.05)
        return await ending

    asks = [asyncio.create_task(last()) for _ in range(LAST)]
    try:
        async with asyncio.timeout(180):
            return (await asyncio.gather(signal(), *asks))[0]
    except TimeoutError:
        return -1


async def counted(port: int, key: str, sent: int) -> tuple[int, int]:
    """Return how many requests the server counts as ended once none runs, and how many it should."""
    found = 0
    for asks in range(60):
        text = (await exchange(port, "GET", "/metrics", None, key)).body.decode()
        found = int(sum(map(float, re.findall(r"^adapterhub_requests_total\{.*\} (\S+)$", text, re.MULTILINE))))
        if found == sent + asks:  # this one ends after it has looked
            return found, sent + asks
        await asyncio.sleep(0.5)
    return found, sent + 59


async def load(
    soak: Soak, world: World, server: Served, keys: Keys, tally: Tally, over: threading.Event
) -> tuple[tuple[int, int], int]:
    """Run the crowd, then stop the server; returns what it counted beside what was sent, and its exit status.

    `over` is set in between.
    """
    crowd = Crowd(world, server.port, keys, tally, time.perf_counter() + soak.seconds, BODY_BYTES)
    await crowd.run(crowd.clients(soak.times))
    over.set()
    count = await counted(server.port, keys.admin, tally.sent.total())
    return count, await stop_under_load(crowd, server, tally)


def run(soak: Soak, base: Base, root: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], Tally, Served]:
    """Do all of it in the folder `root` and return the record; `ok` in it says whether everything was as it must be."""
    world, keys = make_world(root, base, writers=soak.writers), make_keys(root / "keys.json")
    say(f"{len(world.registry.tasks())} tasks published; starting the server")
    options = ["--registry", str(world.registry.root), "--base", base.name, "--keys", str(root / "keys.json")]
    options += ["--max-body", str(BODY_BYTES), "--max-adapters", "4", "--adapter-memory", "16MiB"]
    options += ["--prefix-cache", "32MiB", "--max-rows", "16", "--max-seconds", "170", *soak.options]
    tally, stop = Tally(), threading.Event()
    with served(options, soak.cpus) as server:
        threads = [
            threading.Thread(target=change, args=(world, stop, soak.pause, tally.wrong)),
            threading.Thread(target=server.watch, args=(stop,)),
            threading.Thread(target=tell, args=(tally, stop, say)),
        ]
        server.begun = tally.begun = time.perf_counter()
        server.samples.append(server.sample())
        for thread in threads:
            thread.start()
        try:
            count, status = asyncio.run(load(soak, world, server, keys, tally, stop))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    judge = Judge(world, soak.epsilon, soak.tolerance)
    try:
        verdict = judge.judge(tally, lambda done, of: say(f"judged {done} of {of}") if done % 50 == 0 else None)
    finally:
        judge.close()
    return record_of(soak, tally, server, count, status, verdict), tally, server


def tell(tally: Tally, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Say how it goes, every ten seconds."""
    while not stop.wait(10):
        seconds = time.perf_counter() - tally.begun
        say(f"{seconds:.0f} s: {tally.sent.total()} sent, {tally.ended} ended, {len(tally.wrong)} wrong")


def record_of(
    soak: Soak, tally: Tally, server: Served, count: tuple[int, int], status: int, verdict: Verdict
) -> dict[str, Any]:
    """Return everything that is told, and whether it is well."""
    memory = memory_of(server.samples)
    grown = memory["mb_a_minute"] * soak.seconds / 60
    checks = {
        "no wrong answer": not verdict.wrong,
        "every request answered as it must": not tally.wrong and tally.ended == tally.sent.total(),
        "the server counts as many": count[0] == count[1],
        "it stops in order": status == 0,
        "memory is flat": grown < 0.05 * memory["most_mb"] or soak.seconds < 120,
    }
    return {
        "machine": machine(),
        "seconds": soak.seconds,
        **tally.to_record(),
        "judged": verdict.judged,
        "near_ties": verdict.near_ties,
        "wrong_answers": list(verdict.wrong),
        "counted": list(count),
        "exit": status,
        "memory": memory,
        "checks": checks,
        "ok": all(checks.values()),
    }


def print_record(record: dict[str, Any], tally: Tally) -> None:
    """Print tables."""
    print(f"{record['machine']}\n\n{record['seconds']:.0f} s of load\n")
    print_table(["client", "sent", "answered", "refused", "left", "seconds: p50 / p90 / p99"], rows_of(tally))
    memory = record["memory"]
    print_table(
        ["", "after the warm-up"],
        [
            ["resident set, MB", f"{memory['least_mb']:.0f} to {memory['most_mb']:.0f}"],
            ["its slope, MB a minute", f"{memory['mb_a_minute']:.2f}"],
            ["open files, threads", f"{memory['files']}, {memory['threads']}"],
            ["different answers judged, by near ties", f"{record['judged']}, {record['near_ties']}"],
            ["wrong answers", len(record["wrong_answers"])],
            ["requests the server counted, and were sent", record["counted"]],
            ["exit status", record["exit"]],
        ],
    )
    print_table(["check", ""], [[name, "yes" if well else "**NO**"] for name, well in record["checks"].items()])
    for line in (*record["wrong"][:20], *record["wrong_answers"][:20]):
        print("wrong:", line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--writers", type=int, default=8, help="generation tasks")
    parser.add_argument("--times", type=int, default=1, help="so many times 21 clients")
    parser.add_argument("--cpus", help="cores of the server, as taskset takes them; clients run where this script does")
    parser.add_argument("--threads", help="the server's --threads")
    parser.add_argument("--epsilon", type=float, help="largest difference of near ties, in logits")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    parser.add_argument("--plot", type=Path, help="draw memory and latency over time to this PNG")
    options = parser.parse_args(arguments)
    wide = str(compute_dtype("auto", "cpu")).endswith("float32")
    epsilon = options.epsilon if options.epsilon is not None else 2e-3 if wide else 0.5
    more = () if options.threads is None else ("--threads", options.threads)
    tolerance = 1e-3 if wide else 0.05
    soak = Soak(
        options.seconds, options.writers, options.times, epsilon=epsilon, tolerance=tolerance, cpus=options.cpus,
        options=more,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        record, tally, server = run(
            soak, open_base(options.base), Path(scratch), lambda line: print(line, file=sys.stderr)
        )
    print_record(record, tally)
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    if options.plot is not None:
        draw(tally, server.samples, options.plot)
    return 0 if record["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
