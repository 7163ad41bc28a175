"""How a load on a server is told to people: a table, a column a load."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from adapterhub.bench.run import Report
    from adapterhub.bench.summary import Measured, Spread


def tell(screen: Console, report: Report) -> None:
    """Print what was asked, a table of what came of it, and the first message of each kind of failure."""
    asked = report.workload
    screen.print(
        f"{report.endpoint.url}: {len(asked.models)} models ({asked.popularity.value}), prompts of about "
        f"{asked.prompt_words} words, answers of at most {asked.max_tokens} tokens",
        markup=False,
        highlight=False,
    )
    _table(screen, report)
    for run in report.runs:
        for kind, count in run.errors.items():
            said = f"{_load(run)}: {count} failed ({kind}): {run.messages[kind]}"
            screen.print(said, markup=False, highlight=False)
    if report.interrupted:
        under_way = report.runs[-1].sent - len(report.runs[-1].timings)
        screen.print(f"interrupted; {under_way} requests were under way and are not counted", highlight=False)
    elif report.runs[-1].saturated:
        left = f"; not tried: {', '.join(f'{rate:g}' for rate in report.left_out)} a second" if report.left_out else ""
        screen.print(f"{_load(report.runs[-1])} is more than the server can take{left}", highlight=False)


def _table(screen: Console, report: Report) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for run in report.runs:
        shown.add_column(_load(run), justify="right")
    rows: list[tuple[str, Callable[[Measured], str]]] = [
        ("sent", lambda run: str(run.sent)),
        ("answered", lambda run: str(len(run.answered))),
        ("failed", lambda run: str(sum(run.errors.values()))),
        ("requests/s", lambda run: f"{run.requests_per_second:.2f}"),
        ("tokens/s", lambda run: f"{run.tokens_per_second:.1f}"),
        ("first token, ms: p50 / p90 / p99", lambda run: _times(run.first_token)),
        ("a token after it, ms", lambda run: _times(run.token)),
        ("whole answer, ms", lambda run: _times(run.latency)),
    ]
    for name, value in rows:
        shown.add_row(name, *(Text(value(run)) for run in report.runs))
    screen.print(shown)


def _times(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return " / ".join(f"{seconds * 1000:.0f}" for seconds in spread.percentiles.values())


def _load(run: Measured) -> str:
    return f"{run.load.concurrency} at once" if run.load.rate is None else f"{run.load.rate:g}/s"
