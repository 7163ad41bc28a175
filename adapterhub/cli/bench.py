"""`adapterhub bench …`: what a server does under load."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.bench.workload import Popularity, Workload
from adapterhub.errors import ConfigError, EndpointError, UsageError

from .bench_table import tell
from .shared import JsonOption, console, emit, names_in

if TYPE_CHECKING:
    from adapterhub.bench.drive import Load
    from adapterhub.bench.run import Watch
    from adapterhub.bench.timing import Timing


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(help="Measure servers under load.", no_args_is_help=True)
    # A group of one command, which typer would else take for the group itself.
    group.callback()(lambda: None)
    group.command("serve")(serve_command)
    app.add_typer(group, name="bench")


def serve_command(
    url: Annotated[str, typer.Argument(metavar="URL", help="An OpenAI-compatible server, e.g. http://127.0.0.1:8000.")],
    models: Annotated[
        str, typer.Option("--models", metavar="NAME,…", help="What to ask; else the adapters the server lists.")
    ] = "",
    popularity: Annotated[
        Popularity,
        typer.Option(help="How requests spread over them: evenly, the k-th 1/k of the first, or the first alone."),
    ] = Popularity.ZIPF,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="R,…",
            help="Requests that arrive a second (Poisson); several are tried from low to high until one is too much.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Instead of rates: askers who each send the next when answered.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests at each rate.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="How long they arrive at each rate; 30 without --requests.")
    ] = None,
    prompt_words: Annotated[int, typer.Option(min=1, help="Words of a prompt, a quarter more or less.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 32,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Exactly --max-tokens each (adapterhub, vLLM and their like).")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Ask /v1/chat/completions, not /v1/completions.")] = False,
    seed: Annotated[int, typer.Option(help="Draws models, prompts and arrivals; another asks other prompts.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that one answer may take.")] = 600.0,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the server's key.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw latency percentiles to this PNG.", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put load on a server, and measure its throughput and latency.

    Times are those of streams: to the first token, between tokens, to the whole answer. Ctrl-C ends it with what was
    measured so far.
    """
    from adapterhub.bench.drive import Load
    from adapterhub.bench.endpoint import Endpoint
    from adapterhub.bench.plot import draw
    from adapterhub.bench.run import bench

    if rates is not None and concurrency is not None:
        raise UsageError("--rates and --concurrency are two ways to load a server; give one")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot {str(plot)!r}: there is no such folder; make it first")
    named = tuple(dict.fromkeys(names_in(models)))
    asked = Workload(named, popularity, prompt_words, max_tokens, chat, ignore_eos, seed)
    duration = 30.0 if requests is None and seconds is None else seconds
    if concurrency is not None:
        loads = [Load(None, concurrency, requests, duration, timeout)]
    else:
        loads = [Load(rate, 1, requests, duration, timeout) for rate in _rates(rates or "1")]
    endpoint = Endpoint.parse(url, _key(key_variable))
    with _progress(loads) as advance:
        report = bench(endpoint, asked, loads, advance)
    if as_json:
        emit(report.to_record())
    tell(console(), report)
    if not any(run.answered for run in report.runs):
        if report.interrupted:
            raise KeyboardInterrupt
        if not any(run.sent for run in report.runs):
            raise UsageError("no request was due in that time; give more --seconds, or --requests")
        raise EndpointError(
            f"{endpoint.url} answered none of {sum(run.sent for run in report.runs)} requests (above: why)"
        )
    if plot is not None:
        draw(report, plot)
        console().print(f"plot: {plot}", markup=False, highlight=False)
    if report.interrupted:
        raise KeyboardInterrupt


def _rates(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise UsageError(f"--rates {text!r}: write requests a second, such as 1,2,4,8") from error
    if not all(0 < rate < math.inf for rate in found):
        raise UsageError(f"--rates {text!r}: a rate is a number above 0")
    return found


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"--key-variable: ${variable} is not set; put the server's key there")
    return key


@contextmanager
def _progress(loads: Sequence[Load]) -> Iterator[Watch]:
    """Show on a terminal how many of each load are answered; nothing elsewhere."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[done]} answered, {task.fields[failed]} failed"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console(), transient=True) as bars:
        rows = {load: bars.add_task(_name(load), start=False, visible=False, done=0, failed=0) for load in loads}
        counts = {load: [0, 0] for load in loads}

        def advance(load: Load, timing: Timing) -> None:
            counts[load][timing.error is not None] += 1
            bars.start_task(rows[load])
            bars.update(rows[load], visible=True, done=counts[load][0], failed=counts[load][1])

        yield advance


def _name(load: Load) -> str:
    return f"{load.concurrency} at once" if load.rate is None else f"{load.rate:g} a second"
