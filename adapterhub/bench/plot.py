"""Latency percentiles as a picture: against the arrival rate, or of one load against the share of its requests."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .run import Report
from .summary import PERCENTS, Measured, Spread, percentile
from .timing import Timing

_COLORS = {50: "#2b5797", 90: "#6a8fc4", 99: "#c0562b"}
_TIMES: tuple[tuple[str, Callable[[Measured], Spread | None], Callable[[Timing], float | None]], ...] = (
    ("first token, ms", lambda run: run.first_token, lambda timing: timing.first_token),
    ("a token after it, ms", lambda run: run.token, lambda timing: timing.token),
    ("whole answer, ms", lambda run: run.latency, lambda timing: timing.latency),
)


def draw(report: Report, path: Path) -> None:
    """Draw a report to a PNG, which is at `path` whole or not at all.

    Several rates: p50, p90 and p99 of each time against the rate, the saturated one hollow. One load: each time against
    the percentage of requests that took no longer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = [run for run in report.runs if run.answered]
    figure = Figure(figsize=(7, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(_TIMES), 1, sharex=True)
    for axes, (name, spread, time) in zip(panels, _TIMES, strict=True):
        if len(runs) > 1:
            _against_rate(axes, runs, spread)
        elif runs:
            _against_share(axes, [each for each in map(time, runs[0].answered) if each is not None])
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("requests a second that arrive" if len(runs) > 1 else "percent of requests")
    asked = report.workload
    panels[0].set_title(
        f"{len(asked.models)} models ({asked.popularity.value}), about {asked.prompt_words} words in, "
        f"at most {asked.max_tokens} tokens out"
    )
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _against_rate(axes: Any, runs: Sequence[Measured], spread: Callable[[Measured], Spread | None]) -> None:
    found = [(run, each) for run in runs if (each := spread(run)) is not None]
    for percent in PERCENTS:
        heights = [each.percentiles[percent] * 1000 for _, each in found]
        axes.plot([run.load.rate for run, _ in found], heights, "o-", color=_COLORS[percent], label=f"p{percent}")
        full = [(run.load.rate, height) for (run, _), height in zip(found, heights, strict=True) if run.saturated]
        axes.plot(*zip(*full, strict=True) if full else ([], []), "o", color=_COLORS[percent], markerfacecolor="white")
    if found:
        drawn = [height for _, each in found for height in each.percentiles.values()]
        if max(drawn) > 10 * min(drawn) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


def _against_share(axes: Any, values: Sequence[float]) -> None:
    if not values:
        return
    percents = range(101)
    axes.plot(percents, [percentile(values, each) * 1000 for each in percents], color=_COLORS[50])
    for percent in PERCENTS:
        height = percentile(values, percent) * 1000
        axes.plot([percent], [height], "o", color=_COLORS[percent], label=f"p{percent}: {height:,.0f}")
    axes.legend(frameon=False)
