"""How far `adapterhub train --estimate` is from what training takes, on the sample recipes.

    python benchmarks/estimate.py
    python benchmarks/estimate.py support-tone order-fields

For each recipe of `recipes/`: what `--estimate` says, then the whole training, each in a process of its own, with an
empty registry. Time is that of training and its evaluations, which is what the estimate speaks of. JSON lines, then a
table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from adapterhub.pipeline.build import build
from adapterhub.pipeline.probe import Probed, probe_all
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry

RECIPES = Path(__file__).parents[1] / "recipes"
SAMPLES = ("support-tone", "support-intent", "order-fields", "help-search", "reply-style")
WHAT = {"seconds": "time, s", "peak_memory_bytes": "memory, MB", "adapter_bytes": "adapter, MB"}


class Clock:
    """A training's progress, of which only the time from its begin to its end is kept."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def stage(self, message: str) -> None:
        """Nothing is said."""

    def begin(self, task: str, steps: int) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def step(self, task: str, report: object) -> None:
        """Nothing is kept."""

    def evaluated(self, task: str, evaluation: object, *, best: bool) -> None:
        """Nothing is kept."""

    def end(self, task: str) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started


def estimated(name: str) -> dict[str, float]:
    """Return what `--estimate` says."""
    with tempfile.TemporaryDirectory() as scratch:
        (probed,) = probe_all([load_recipe(RECIPES / f"{name}.yaml")], Registry(Path(scratch)), Clock())
    assert isinstance(probed, Probed), probed
    record = probed.to_record()
    return {key: record[key] for key in WHAT}


def trained(name: str) -> dict[str, float]:
    """Return what training took."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        result = build(load_recipe(RECIPES / f"{name}.yaml"), Registry(Path(scratch)), clock)
        size = (result.published.path / "adapter_model.safetensors").stat().st_size
    return {
        "seconds": clock.seconds,
        "peak_memory_bytes": result.training.peak_memory_bytes,
        "adapter_bytes": size,
    }


def apart(work: Any, name: str) -> dict[str, float]:
    """Run `work` in a process of its own, so that its memory is."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found: dict[str, float] = pool.submit(work, name).result()
    return found


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=list(SAMPLES))
    head = [f"{name}: said, was, error" for name in WHAT.values()]
    table = [f"| recipe | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name in parser.parse_args().recipes:
        said, was = apart(estimated, name), apart(trained, name)
        print(json.dumps({"recipe": name, "said": said, "was": was}), flush=True)
        cells = []
        for key in WHAT:
            unit = 1 if key == "seconds" else 1e6
            error = said[key] / was[key] - 1
            cells.append(f"{said[key] / unit:.3g}, {was[key] / unit:.3g}, {error:+.0%}")
        table.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
