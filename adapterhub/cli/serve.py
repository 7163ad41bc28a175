"""`adapterhub serve`: one base and every task's adapter behind OpenAI's HTTP interface."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.errors import UsageError

from .shared import RegistryOption, console, names_in
from .sizes import parse_size, parse_weights


class LogFormat(StrEnum):
    """How lines on stderr look."""

    TEXT = "text"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(serve)


def serve(
    base: Annotated[
        str | None, typer.Option("--base", help="Base to serve; else the one the registry's tasks lie on.")
    ] = None,
    registry: RegistryOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine it needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one and tells it.")] = 8000,
    adapters: Annotated[
        str,
        typer.Option(
            "--adapters", metavar="REF,…", help="Versions to load and verify before the server is ready, and to pin."
        ),
    ] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute; else as measured.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Requests that share one batch.")] = 32,
    max_adapters: Annotated[int, typer.Option(min=1, help="Adapters ready to run, the most one batch may mix.")] = 32,
    adapter_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for adapters as they were read from disk.")
    ] = "1GiB",
    prefix_cache: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for beginnings of prompts that come again; 0 keeps none.")
    ] = "256MiB",
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=NUMBER", help="A task's part of a busy machine beside others' 1, e.g. support=2. Repeatable."
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            metavar="FILE",
            envvar="ADAPTERHUB_KEYS",
            help="File of keys (see `adapterhub keys`); every client must send one as a bearer token.",
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="ADAPTERHUB_API_KEY", help="One key that may do everything, beside the file's.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow other machines in without a key.")] = False,
    feedback: Annotated[
        Path | None,
        typer.Option(
            "--feedback", metavar="FOLDER", help="Keep what POST /v1/feedback says, and the recent answers it is about."
        ),
    ] = None,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="The largest body of a request.")] = "4MiB",
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests answered or waiting at once; one key takes half of them at most.")
    ] = 1024,
    max_seconds: Annotated[float, typer.Option(min=0.001, help="How long one request may take in all.")] = 600.0,
    log_format: Annotated[
        LogFormat, typer.Option(help="text: requests as JSON, the rest as it is; json: every line a JSON object.")
    ] = LogFormat.TEXT,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="How long running requests may go on once the server is told to stop.")
    ] = 30.0,
) -> None:
    """Serve the base and all adapters of a registry over HTTP, until SIGTERM or Ctrl-C."""
    from adapterhub.registry.store import Registry
    from adapterhub.server.limits import ServerLimits
    from adapterhub.server.log import LOG, JsonLines
    from adapterhub.server.run import ServerOptions, check_exposure
    from adapterhub.server.run import serve as run
    from adapterhub.server.startup import HubOptions, open_hub

    limits = ServerLimits(parse_size(max_body, "--max-body"), max_requests, max_seconds)
    options = ServerOptions(host, port, api_key, keys, insecure, drain_seconds, limits, feedback)
    check_exposure(options)
    refs = tuple(names_in(adapters))
    located = Registry.locate(registry)
    if registry is not None and not located.is_dir():
        raise UsageError(f"there is no registry at {str(located)!r}; publish something there first")
    hub = HubOptions(
        located,
        base,
        refs,
        threads,
        max_rows,
        resident=max_adapters,
        host_bytes=parse_size(adapter_memory, "--adapter-memory"),
        prefix_bytes=parse_size(prefix_cache, "--prefix-cache"),
        weights=parse_weights(weight or (), "--weight"),
    )
    if log_format is LogFormat.TEXT:
        with _logged_to_stderr(logging.Formatter("%(message)s")):
            run(partial(open_hub, hub), options, _say)
    else:
        with _logged_to_stderr(JsonLines()):
            run(partial(open_hub, hub), options, LOG.info)


def _say(line: str) -> None:
    console().print(f"adapterhub: {line}", markup=False, highlight=False)


@contextmanager
def _logged_to_stderr(lines: logging.Formatter) -> Iterator[None]:
    """Send request lines and what goes wrong to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(lines)
    ours, framework = logging.getLogger("adapterhub"), logging.getLogger("uvicorn")
    level = ours.level
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    framework.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        framework.removeHandler(handler)
        ours.setLevel(level)
