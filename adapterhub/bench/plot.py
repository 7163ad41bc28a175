"""Latency percentiles as a picture: against the arrival rate, or of one load against the share of its requests."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .run import Report
from .summary import PERCENTS, Measured, Spread, percentile
from .timing import Timing

# Dark to bright as waits grow; told apart in grey too, and by their markers.
_LOOKS = {50: ("#1f3d7a", "o"), 90: ("#4f8fc0", "s"), 99: ("#c0562b", "^")}
_FULL = "#b03030"
_TIMES: tuple[tuple[str, Callable[[Measured], Spread | None], Callable[[Timing], float | None]], ...] = (
    ("first token", lambda run: run.first_token, lambda timing: timing.first_token),
    ("each token after it", lambda run: run.token, lambda timing: timing.token),
    ("whole answer", lambda run: run.latency, lambda timing: timing.latency),
)


def draw(report: Report, path: Path) -> None:
    """Draw a report to a PNG, which is at `path` whole or not at all.

    Several rates: p50, p90 and p99 of each time against the rate, on a logarithmic scale; the rate that was more than
    the server could take lies in a shaded part, its points hollow. One load: each time against the percentage of
    requests that took no longer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = [run for run in report.runs if run.answered]
    figure = Figure(figsize=(7.5, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(_TIMES), 1, sharex=True)
    for axes, (name, spread, time) in zip(panels, _TIMES, strict=True):
        if len(runs) > 1:
            _against_rate(axes, runs, spread)
        elif runs:
            _against_share(axes, [each for each in map(time, runs[0].answered) if each is not None])
        axes.set_ylabel(f"{name}, ms")
        axes.grid(which="major", alpha=0.35)
        axes.grid(which="minor", alpha=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("requests arriving a second" if len(runs) > 1 else "percent of requests")
    asked = report.workload
    models = f"{len(asked.models)} models ({asked.popularity.value})" if len(asked.models) > 1 else "1 model"
    figure.suptitle(
        f"{models}, about {asked.prompt_words} words in, {'exactly' if asked.ignore_eos else 'at most'} "
        f"{asked.max_tokens} tokens out",
        fontsize=11,
    )
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _against_rate(axes: Any, runs: Sequence[Measured], spread: Callable[[Measured], Spread | None]) -> None:
    found = [(run.load.rate or 0.0, run.saturated, each) for run in runs if (each := spread(run)) is not None]
    if not found:
        return
    for percent in reversed(PERCENTS):
        color, marker = _LOOKS[percent]
        rates = [rate for rate, _, _ in found]
        heights = [each.percentiles[percent] * 1000 for _, _, each in found]
        axes.plot(rates, heights, marker=marker, markersize=5, color=color, label=f"p{percent}")
        full = [(rate, height) for (rate, full, _), height in zip(found, heights, strict=True) if full]
        axes.plot(
            *(zip(*full, strict=True) if full else ([], [])), marker, markersize=5, color=color, markerfacecolor="white"
        )
    _scale(axes, [height * 1000 for _, _, each in found for height in each.percentiles.values()])
    _shade(axes, [(run.load.rate or 0.0, run.saturated) for run in runs])
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper left")


def _scale(axes: Any, heights: Sequence[float]) -> None:
    """Put the axis of times on a logarithmic scale with plain numbers; not where some are zero."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if min(heights) <= 0:
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.set_ylim(min(heights) / 1.4, max(heights) * 1.4)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _shade(axes: Any, rates: Sequence[tuple[float, bool]]) -> None:
    """Mark where the server was asked more than it can take: from half-way after the last rate it kept up with."""
    full = [rate for rate, saturated in rates if saturated]
    if not full:
        return
    kept = max((rate for rate, saturated in rates if not saturated and rate < full[0]), default=0.0)
    edge = (kept + full[0]) / 2
    end = rates[-1][0] + full[0] - edge
    axes.axvspan(edge, end, color=_FULL, alpha=0.08, linewidth=0)
    axes.axvline(edge, color=_FULL, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(right=end)
    middle = (edge + end) / 2
    axes.text(middle, 0.04, "saturated", color=_FULL, fontsize=8, ha="center", transform=axes.get_xaxis_transform())


def _against_share(axes: Any, values: Sequence[float]) -> None:
    if not values:
        return
    percents = range(101)
    axes.plot(percents, [percentile(values, each) * 1000 for each in percents], color=_LOOKS[50][0])
    for percent in PERCENTS:
        height = percentile(values, percent) * 1000
        color, marker = _LOOKS[percent]
        axes.plot([percent], [height], marker, color=color, label=f"p{percent}: {height:,.0f} ms")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left")
