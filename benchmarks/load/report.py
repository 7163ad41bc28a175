"""What a soak came to: memory's slope, latencies, a table, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.bench.summary import PERCENTS, percentile

from .served import Sample
from .tally import Tally

# Memory is looked at once caches are full: after this part of the time.
WARM = 0.3


def memory_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the resident set's bounds in MB and slope in MB a minute, open files and threads, all after the warm-up.

    The slope is the median of those between all pairs of samples (Theil and Sen), which one jump does not bend.
    """
    end = samples[-1].at
    warm = [each for each in samples if each.at >= WARM * end] or list(samples[-1:])
    return {
        "after_seconds": warm[0].at,
        "seconds": end,
        "first_mb": samples[0].resident,
        "least_mb": min(each.resident for each in warm),
        "most_mb": max(each.resident for each in warm),
        "mb_a_minute": slope(warm) * 60,
        "files": [min(each.files for each in warm), max(each.files for each in warm)],
        "threads": [min(each.threads for each in warm), max(each.threads for each in warm)],
    }


def slope(samples: Sequence[Sample]) -> float:
    """Return MB a second."""
    some = samples[:: 1 + len(samples) // 400]
    at: NDArray[Any] = np.array([each.at for each in some])
    resident: NDArray[Any] = np.array([each.resident for each in some])
    upper = np.triu_indices(len(some), k=1)
    if not len(upper[0]):
        return 0.0
    found = (resident[None, :] - resident[:, None])[upper] / (at[None, :] - at[:, None])[upper]
    return float(np.median(found))


def rows_of(tally: Tally) -> list[list[object]]:
    """Return a row a kind of client: how many, and percentiles of their seconds."""
    rows: list[list[object]] = []
    for kind in sorted(tally.sent):
        seconds = [took for each, _, took in tally.times if each == kind]
        spread = " / ".join(f"{percentile(seconds, p):.2f}" for p in PERCENTS) if seconds else ""
        counts = [tally.sent[kind], tally.answered[kind], tally.refused[kind], tally.left[kind]]
        rows.append([kind, *counts, spread])
    return rows


def draw(tally: Tally, samples: Sequence[Sample], path: Path) -> None:
    """Draw memory, threads and files, and latencies over time to a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    memory, counts, waits = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 2))
    minutes = [each.at / 60 for each in samples]
    memory.plot(minutes, [each.resident for each in samples], color="#2b5797")
    memory.set_ylim(bottom=0)
    memory.set_ylabel("resident set, MB")
    counts.plot(minutes, [each.threads for each in samples], color="#2b5797", label="threads")
    counts.plot(minutes, [each.files for each in samples], color="#c0562b", label="open files")
    counts.set_ylim(bottom=0)
    counts.legend(frameon=False, ncols=2, loc="lower right")
    for kind, color in (("write", "#2b5797"), ("label", "#3a8a5f"), ("err", "#c0562b")):
        points = [(at / 60, took) for each, at, took in tally.times if each == kind]
        if points:
            waits.plot(*zip(*points, strict=True), ".", markersize=3, alpha=0.5, color=color, label=LEGEND[kind])
    waits.set_yscale("log")
    waits.set_ylabel("answer, s")
    waits.set_xlabel("minutes")
    waits.legend(frameon=False, ncols=3, loc="lower right", markerscale=3)
    for axes in (memory, counts, waits):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    memory.set_title(f"{tally.sent.total():,} requests of {len(tally.sent)} kinds of client")
    figure.savefig(path, dpi=110)


LEGEND = {"write": "texts, whole", "label": "labels", "err": "refusals"}
