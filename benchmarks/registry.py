"""How long a registry takes to answer as it grows: list, resolve, publish, alias, verify.

    python benchmarks/registry.py [--versions 10 1000 10000] [--rounds 5]

One task with that many versions; weights of 64 KB each, so that laptops have room for 10,000. Each is the median of
the rounds, list and resolve once as a whole command (`adapterhub registry …`, a new process) and once as a call in a
process that has everything loaded. `verify` hashes all files of all versions. The registry is laid out by this script
without forcing every file to the disk; the publish that is measured does all that it always does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from workload import machine, print_table

from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.registry.bundle import digest_folder, folder_name, hash_file
from adapterhub.registry.card import Card
from adapterhub.registry.index import INDEX_FILE, Entry, Index
from adapterhub.registry.store import Registry

FINGERPRINT = "sha256:" + "b" * 64
SPEC = TaskSpec("classification", FINGERPRINT, 128, labels=("a", "b"), prompt=PromptSpec(), pooling="last")
CARD = Card("classification", {"name": "tiny", "public_id": "org/tiny", "fingerprint": FINGERPRINT}, task="task")
TIME = "2026-01-31T12:00:00Z"


def write_adapter(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}) + "\n")
    (folder / "adapter_model.safetensors").write_bytes(number.to_bytes(8, "big") * 8192)
    (folder / "task.json").write_text(SPEC.to_json())
    return folder


def lay_out(root: Path, count: int) -> Registry:
    """Write a registry with `count` versions of one task."""
    task, entries = root / "task", []
    for number in range(1, count + 1):
        folder = write_adapter(task / "new", number)
        digest = digest_folder(folder)
        (folder / "card.json").write_text(replace(CARD, digest=digest, created_at=TIME).to_json())
        (folder / "README.md").write_text("---\n---\n")
        entries.append(Entry(number, digest, hash_file(folder / "card.json"), TIME))
        folder.rename(task / folder_name(digest))
    index = Index("task", "tiny", FINGERPRINT, tuple(entries)).with_alias("prod", count // 2, TIME)
    (task / INDEX_FILE).write_text(index.to_json())
    return Registry(root)


def timed(rounds: int, work: Callable[[int], object]) -> float:
    """Return the median seconds of `work`, which is told the round."""
    found = []
    for number in range(rounds):
        started = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - started)
    return median(found)


def measure(root: Path, count: int, rounds: int) -> dict[str, float]:
    """Return seconds by what was done."""
    registry = lay_out(root / "registry", count)
    made = [write_adapter(root / f"made-{number}", count + 1 + number) for number in range(rounds)]
    middle = registry.resolve(f"task@{max(1, count // 2)}").digest[:20]

    def command(*words: str) -> None:
        environment = {**os.environ, "ADAPTERHUB_REGISTRY": str(registry.root)}
        subprocess.run(
            [sys.executable, "-m", "adapterhub", "registry", *words], env=environment, check=True, capture_output=True
        )

    return {
        "list, command": timed(rounds, lambda _: command("list", "--json")),
        "list of the task, command": timed(rounds, lambda _: command("list", "task", "--json")),
        "resolve, command": timed(rounds, lambda _: command("resolve", "task@prod", "--json")),
        "list": timed(rounds, lambda _: registry.versions("task")),
        "resolve by alias": timed(rounds, lambda _: registry.resolve("task@prod")),
        "resolve by digest": timed(rounds, lambda _: registry.resolve(f"task@{middle}")),
        "publish": timed(rounds, lambda number: registry.publish("task", made[number], CARD)),
        "alias": timed(rounds, lambda number: registry.alias("task", "canary", f"task@{number + 1}")),
        "verify, all": timed(1, lambda _: registry.verify()),
    }


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, nargs="+", default=[10, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{machine()}\n")
    found = {}
    for count in options.versions:
        with tempfile.TemporaryDirectory() as scratch:
            found[count] = measure(Path(scratch), count, options.rounds)
    names = next(iter(found.values()))
    head = ["milliseconds", *(f"{count:,} versions" for count in found)]
    print_table(head, [[name, *(f"{each[name] * 1e3:.1f}" for each in found.values())] for name in names])


if __name__ == "__main__":
    main()
