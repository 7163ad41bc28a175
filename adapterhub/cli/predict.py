"""`adapterhub predict`: answers for a text, a file or a stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.errors import UsageError

from .base import base_progress
from .shared import RegistryOption, emit

if TYPE_CHECKING:
    from adapterhub import recipe
    from adapterhub.data.example import Example
    from adapterhub.data.task import Kind
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.runtime.target import Target

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="task, task@3, task@prod or task@sha256:…")]
BaseOption = Annotated[str | None, typer.Option("--base", help="Base to answer on; else the one the version names.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(predict)


def predict(
    ref: RefArgument,
    text: Annotated[str | None, typer.Argument(help="One text; else --input, else standard input.")] = None,
    source: Annotated[
        Path | None, typer.Option("--input", help="JSONL, CSV, Parquet or .txt (one text a line).")
    ] = None,
    base: BaseOption = None,
    registry: RegistryOption = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest completion, for generation tasks.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="For generation tasks; 0 is greedy.", show_default="0")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed where temperature is above 0.")] = None,
) -> None:
    """Answer with one version of a task: one JSON object a line on stdout, in the order of the input."""
    from adapterhub.pipeline.measure import answers

    if text is not None and source is not None:
        raise UsageError("give a text or --input, not both")
    if text is None and source is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("nothing to answer: give a text, --input FILE, or pipe examples in")
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    with open_hub(ref, base, registry) as hub:
        target = hub.target(ref)
        check_options(target, options)
        examples = _read(target, source) if text is None else [_example(target, text)]
        for answer in answers(partial(hub.answers, target), examples, **options):
            emit(answer.to_record())


def open_hub(ref: str, base: str | None, registry: Path | None) -> AdapterHub:
    """Open the base that is asked for, or the version's own, with progress where it is fetched first."""
    from adapterhub.base.source import open_base
    from adapterhub.registry.store import Registry
    from adapterhub.runtime.hub import AdapterHub

    store = Registry(Registry.locate(registry))
    name = base if base is not None else store.resolve(ref).base
    with base_progress() as progress:
        opened = open_base(name, progress=progress)
    return AdapterHub(opened, store)


def check_options(target: Target, options: Mapping[str, Any], rows: recipe.Kind | None = None) -> None:
    """Raise UsageError for options of generation where nothing is written."""
    from adapterhub.data.task import a_task

    names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
    if options and (kind := _kind(target)) != "generation":
        raise UsageError(f"{names}: for generation, but {target.name!r} is {a_task(kind)}; leave it out")
    if options and rows == "preference":
        raise UsageError(f"{names}: the rows are preferences, on which nothing is written; leave it out")


def _example(target: Target, text: str) -> Example:
    from adapterhub.data.example import Example
    from adapterhub.data.prompt import input_field

    return Example("", {input_field(_kind(target)): text})


def _kind(target: Target) -> Kind:
    return target.spec.kind if target.spec is not None else "generation"


def _read(target: Target, source: Path | None) -> Iterator[Example]:
    from adapterhub.data.files import read_examples, read_stream

    kind = _kind(target)
    if source is not None:
        return read_examples(source, kind, labelled=False)
    return read_stream(sys.stdin.buffer, "standard input", kind, labelled=False)
