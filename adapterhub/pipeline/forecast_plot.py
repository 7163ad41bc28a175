"""A forecast as a picture: what was measured, the curve through it, and where it is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.registry.disk import replacing

if TYPE_CHECKING:
    from .forecast import TaskForecast

PLOT, RECORD = "forecast.png", "forecast.json"
_BLUE, _GREY, _RED = "#1f5fa8", "#8a929e", "#b3403a"


def draw(found: TaskForecast, path: Path) -> None:
    """Draw a forecast to a PNG, in one step."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    forecast = found.forecast
    sizes, limit = forecast.ladder.sizes, forecast.limit
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    places = np.unique(np.geomspace(sizes[0], limit, 120).astype(int)).tolist()
    points = [forecast.at(rows) for rows in places]
    shade = ([each.low for each in points], [each.high for each in points])
    axes.fill_between(places, *shade, color=_BLUE, alpha=0.15, linewidth=0, label="90% of the resamples")
    known = [each for each in points if each.n <= sizes[-1]]
    beyond = [each for each in points if each.n >= sizes[-1]]
    for part, style in ((known, "-"), (beyond, "--")):
        axes.plot([each.n for each in part], [each.error for each in part], style, color=_BLUE, linewidth=1.8)
    axes.plot([], [], color=_BLUE, linewidth=1.8, label=f"{forecast.curve}")
    rungs = forecast.rungs()
    errors = [each.error for each in rungs]
    bars = [[each.error - each.low for each in rungs], [each.high - each.error for each in rungs]]
    axes.errorbar(sizes, errors, bars, fmt="o", color="black", markersize=4, capsize=3, linewidth=1, label="measured")
    if found.need is not None:
        axes.axhline(
            found.need.error, color=_RED, linewidth=1, linestyle=":", label=f"target {1 - found.need.error:.1%}"
        )
    axes.axvline(sizes[-1], color=_GREY, linewidth=0.8)
    axes.annotate(" forecast", (sizes[-1], 1), xycoords=("data", "axes fraction"), va="top", color=_GREY, fontsize=8)
    _finish(axes, [*sizes, 2 * sizes[-1], limit], found)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _finish(axes: Any, ticks: list[int], found: TaskForecast) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{each:,}" for each in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training rows")
    axes.set_ylabel(f"error on {found.measured:,} {found.measured_on} rows")
    axes.set_title(f"{found.task}: {found.by} on {found.base}, {found.seeds} seeds", fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
