"""`adapterhub predict` and `adapterhub eval`: answers for a text, a file or a stream, and how good they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.errors import DataError, UsageError

from .base import base_progress
from .shared import JsonOption, RegistryOption, console, emit

if TYPE_CHECKING:
    from adapterhub import recipe
    from adapterhub.data.example import Example
    from adapterhub.data.task import Kind, TaskSpec
    from adapterhub.metrics import Metric
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.runtime.target import Target

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="task, task@3, task@prod or task@sha256:…")]
BaseOption = Annotated[str | None, typer.Option("--base", help="Base to answer on; else the one the version names.")]


def register(app: typer.Typer) -> None:
    """Add both commands to `app`."""
    app.command()(predict)
    app.command("eval")(evaluate)


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
    with _opened(ref, base, registry) as hub:
        target = hub.target(ref)
        _check_options(target, options)
        examples = _read(target, source) if text is None else [_example(target, text)]
        for answer in answers(partial(hub.answers, target), examples, **options):
            emit(answer.to_record())


def evaluate(
    ref: RefArgument,
    data: Annotated[Path, typer.Option("--data", help="Labelled examples: JSONL, CSV or Parquet.")],
    out_of_scope: Annotated[
        Path | None, typer.Option("--out-of-scope", help="Rows that have none of the labels, to measure rejections on.")
    ] = None,
    base: BaseOption = None,
    registry: RegistryOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest completion; else enough for the longest gold one.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a version on labelled examples: each metric with its 95% interval.

    A generation task can be measured on preferences too, rows with chosen and rejected.
    """
    from adapterhub.data.files import read_examples
    from adapterhub.pipeline.splits import read_outside

    with _opened(ref, base, registry) as hub:
        target = hub.target(ref)
        spec = target.spec
        if spec is None:
            raise UsageError(f"{ref!r} is a base; eval measures a version of a task")
        kind = _kind_of_rows(data, spec)
        _check_options(target, {} if max_tokens is None else {"max_tokens": max_tokens}, kind)
        if out_of_scope is not None and spec.kind != "classification":
            raise UsageError(f"--out-of-scope: for classification, but {ref!r} is a {spec.kind} task; leave it out")
        examples = list(read_examples(data, kind, labels=spec.labels or None))
        outside = read_outside(out_of_scope, spec.kind) if out_of_scope is not None else []
        metrics = _measure(hub, target, spec, kind, examples, outside, max_tokens)
    if as_json:
        record = {"ref": ref, "digest": target.digest, "data": str(data), "rows": len(examples)}
        if out_of_scope is not None:
            record |= {"out_of_scope": str(out_of_scope), "out_of_scope_rows": len(outside)}
        emit({**record, "metrics": {name: metric.to_record() for name, metric in metrics.items()}})
        return
    screen = console()
    screen.print(f"{ref} on {len(examples)} rows of {data}", markup=False, highlight=False)
    for name, metric in metrics.items():
        screen.print(f"  {name:<19} {metric.value:.4f}  (95% interval {metric.low:.4f} to {metric.high:.4f})")


def _kind_of_rows(data: Path, spec: TaskSpec) -> recipe.Kind:
    """Return as what to read the rows: those of a generation task may be preferences, which the first row shows."""
    from adapterhub.data.files import read_examples

    if spec.kind != "generation":
        return spec.kind
    try:
        next(read_examples(data, "preference"))
    except DataError:
        return "generation"
    return "preference"


def _measure(
    hub: AdapterHub,
    target: Target,
    spec: TaskSpec,
    kind: recipe.Kind,
    examples: Sequence[Example],
    outside: Sequence[Example],
    max_tokens: int | None,
) -> dict[str, Metric]:
    from adapterhub.pipeline.measure import answers, completion_limits, gold_answers, score
    from adapterhub.pipeline.pairs import preference_of, retrieval_of, texts_of

    if kind == "preference":
        return preference_of(hub, target, examples)
    if kind == "embedding":
        total = len(texts_of(spec, examples))
        return retrieval_of(spec, examples, lambda inputs: _with_progress(hub.answers(target, inputs), total))
    limits = completion_limits(hub.base, spec, examples, max_tokens)
    answered = gold_answers(partial(hub.answers, target), examples, limits)
    found = list(_with_progress(answered, len(examples)))
    rejections = list(answers(partial(hub.answers, target), outside)) if outside else []
    return score(spec, examples, found, rejections)


def _opened(ref: str, base: str | None, registry: Path | None) -> AdapterHub:
    """Open the base that is asked for, or the version's own, with progress where it is fetched first."""
    from adapterhub.base.source import open_base
    from adapterhub.registry.store import Registry
    from adapterhub.runtime.hub import AdapterHub

    store = Registry(Registry.locate(registry))
    name = base if base is not None else store.resolve(ref).base
    with base_progress() as progress:
        opened = open_base(name, progress=progress)
    return AdapterHub(opened, store)


def _check_options(target: Target, options: Mapping[str, Any], rows: recipe.Kind | None = None) -> None:
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


def _with_progress(answers: Iterable[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    return iter(track(answers, "Answering", total=total, console=console(), transient=True))
