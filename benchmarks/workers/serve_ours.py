"""Worker: the engine of this repository.

Prompts of a round enter in several steps, the later ones beside rows that decode already; so a run of one token each
tells the time they take, and a second run the whole.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from line import serve, take_stdout

answers = take_stdout()
sys.path.append(str(Path(__file__).parents[1]))

import torch  # noqa: E402
from ours import Driven  # noqa: E402
from workload import Ask  # noqa: E402

from adapterhub.engine.scheduler import Limits  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    driven = Driven(options.adapters, options.dtype, Limits(rows=options.rows), options.slots, options.threads)

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        asks = [Ask(tuple(row["tokens"]), row["adapter"], row["max_tokens"]) for row in command["rows"]]
        prefill = 0.0 if command.get("total_only") else driven.run([replace(ask, max_tokens=1) for ask in asks])[0]
        seconds, heard = driven.run(asks)
        started, ended = max(each.times[0] for each in heard), max(each.times[-1] for each in heard)
        return {
            "seconds": seconds,
            "prefill_seconds": prefill,
            "decode_seconds": ended - started,
            "decode_tokens": sum(moment > started for each in heard for moment in each.times),
            "tokens": [each.tokens for each in heard],
        }

    about = {
        "engine": f"adapterhub {version('adapterhub')}, torch {torch.__version__}",
        "threads": driven.threads.count,
    }
    serve(answers, answer, about)


if __name__ == "__main__":
    main()
