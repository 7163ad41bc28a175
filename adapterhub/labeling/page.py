"""The report on votes as one HTML file with its plots inside, which needs nothing else to be read."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.metrics import Metric
from adapterhub.registry.disk import replace_file

from .analysis import VoterReport, VotesReport

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d9dee6; text-align: right; vertical-align: top }
th:first-child, td:first-child, .names { text-align: left }
img { max-width: 100% } .warn { color: #a33c00 }
"""
_ALONE = 0.2
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#c05621", "#a0aec0"


def write_page(path: Path, report: VotesReport, title: str) -> None:
    """Write the page in one step."""
    replace_file(path, page(report, title))


def page(report: VotesReport, title: str) -> str:
    """Return the page; names are shown as they are, whatever they hold."""
    shown = html.escape(title)
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{shown}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{shown}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in summary(report)),
        *(f'<p class="warn">{html.escape(line)}</p>' for line in warnings(report)),
        "<h2>Voters</h2>",
        _voters(report),
        *(
            f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="{source}">'
            for name, source in _plots(report)
        ),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def summary(report: VotesReport) -> list[str]:
    """Return what the report says of all voters, a sentence each."""
    fit = report.fit
    balance = ", ".join(f"{name} {each:.3f}" for name, each in zip(fit.votes.labels, fit.balance, strict=True))
    lines = [
        f"{len(fit.votes.ids):,} rows, {len(report.voters)} voters; {report.coverage:.1%} of rows have a vote "
        f"({len(report.uncovered):,} have none), {report.overlap:.1%} more than one, "
        f"{report.conflict:.1%} votes that differ.",
        f"Accuracies by {fit.model} ({fit.why}); balance {fit.balance_source}: {balance}. "
        f"Its label is not the majority's on {float(fit.differs.mean()):.1%} of rows.",
    ]
    if report.dev:
        right = ", ".join(f"{name.replace('_', ' ')} {each.value:.1%}" for name, each in report.dev.items())
        lines.append(f"On {report.dev_rows:,} rows with a gold label and a vote: {right} right.")
    return lines


def warnings(report: VotesReport) -> list[str]:
    """Return what a reader should do something about."""
    lines = []
    cast = sum(each.coverage for each in report.voters)
    alone = sum(each.coverage - each.overlap for each in report.voters) / cast if cast else 0.0
    if alone > _ALONE and report.fit.model != "majority":
        lines.append(
            f"{alone:.0%} of the votes are on rows where no other voter votes. Nothing tells how good these are, "
            "so they are taken to be right 70% of the time; trust accuracies on gold labels more."
        )
    lines += [f"One vote together, since they say the same: {', '.join(each)}." for each in report.fit.merged]
    if report.fit.clustering.doubtful:
        lines.append("Which voters are copies is not clear from their votes; gold labels for some rows would tell.")
    constant = [each.name for each in report.voters if each.near_constant]
    if constant:
        lines.append(f"Nearly always the same label: {', '.join(constant)}.")
    silent = [each.name for each in report.voters if not each.votes]
    if silent:
        lines.append(f"Never votes: {', '.join(silent)}.")
    return lines


def _voters(report: VotesReport) -> str:
    names = ("voter", "votes for", "coverage", "overlap", "conflict", "estimated accuracy", "accuracy on gold", "rows")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join("<tr>" + "".join(_cells(each)) + "</tr>" for each in report.voters)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cells(voter: VoterReport) -> Sequence[str]:
    polarity = ", ".join(f"{label} {count:,}" for label, count in voter.polarity.items()) or "nothing"
    return [
        f"<td>{html.escape(voter.name)}</td>",
        f'<td class="names">{html.escape(polarity)}</td>',
        *(f"<td>{each:.1%}</td>" for each in (voter.coverage, voter.overlap, voter.conflict)),
        *(f"<td>{interval(each)}</td>" for each in (voter.accuracy, voter.empirical)),
        f"<td>{voter.dev_rows:,}</td>",
    ]


def interval(metric: Metric | None) -> str:
    """Return an accuracy with its interval, or a dash."""
    return "-" if metric is None else f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"


def short(metric: Metric | None) -> str:
    """Return the same in few letters, on two lines."""
    return "-" if metric is None else f"{metric.value:.3f}\n{metric.low:.2f}-{metric.high:.2f}"


def _plots(report: VotesReport) -> list[tuple[str, str]]:
    """Return (what it shows, a data URL) of each plot."""
    height = 1.6 + 0.32 * len(report.voters)
    return [
        ("Accuracy, with 95% intervals", _drawn(lambda axes: _accuracies(axes, report), (8, height))),
        ("Coverage, overlap and conflict", _drawn(lambda axes: _shares(axes, report), (8, height))),
        ("How alike voters vote (correlation)", _drawn(lambda axes: _alike(axes, report), (height + 3, height + 2))),
        ("Votes a row", _drawn(lambda axes: _by_votes(axes, report), (8, 3))),
    ]


def _drawn(draw: Any, size: tuple[float, float]) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(drawn.getvalue()).decode("ascii")


def _names(axes: Any, report: VotesReport) -> np.ndarray:
    """Write the voters' names down the side, the first on top; `$` would begin a formula."""
    places = np.arange(len(report.voters))
    axes.set_yticks(places, [each.name[:40].replace("$", r"\$") for each in report.voters])
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return places


def _accuracies(axes: Any, report: VotesReport) -> None:
    places = _names(axes, report)
    sides = (("estimated", "accuracy", _BLUE, "o", -0.12), ("on gold labels", "empirical", _ORANGE, "s", 0.12))
    for label, field, colour, marker, shift in sides:
        known = [
            (place, metric)
            for place, each in zip(places, report.voters, strict=True)
            if (metric := getattr(each, field))
        ]
        if known:
            values = np.array([[metric.value, metric.low, metric.high] for _, metric in known])
            reach = np.abs(values[:, 1:] - values[:, :1]).T
            axes.errorbar(
                values[:, 0],
                np.array([place for place, _ in known]) + shift,
                xerr=reach,
                fmt=marker,
                color=colour,
                label=label,
                capsize=3,
            )
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("accuracy of its votes")
    axes.grid(axis="x", color="#e2e8f0")
    if axes.has_data():
        axes.figure.legend(loc="outside upper right", ncols=2, frameon=False)


def _shares(axes: Any, report: VotesReport) -> None:
    places = _names(axes, report)
    for shift, (field, colour) in enumerate((("coverage", _BLUE), ("overlap", _GREY), ("conflict", _ORANGE))):
        values = [getattr(each, field) for each in report.voters]
        axes.barh(places + (shift - 1) * 0.25, values, height=0.25, color=colour, label=field)
    axes.set_xlabel("share of rows")
    axes.figure.legend(loc="outside upper right", ncols=3, frameon=False)


def _alike(axes: Any, report: VotesReport) -> None:
    places = _names(axes, report)
    values = np.where(np.eye(len(places), dtype=bool), np.nan, report.alike)
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(places, [each.name[:24].replace("$", r"\$") for each in report.voters], rotation=60, ha="right")
    axes.figure.colorbar(image, ax=axes, shrink=0.7)


def _by_votes(axes: Any, report: VotesReport) -> None:
    axes.bar(np.arange(len(report.by_votes)), report.by_votes, color=_BLUE)
    axes.set_xlabel("votes on the row")
    axes.set_ylabel("rows")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
