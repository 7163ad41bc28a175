"""`adapterhub predict` and `adapterhub eval`: answers for a text, a file or a stream, and how good they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.errors import UsageError

from .shared import JsonOption, RegistryOption, console, emit

if TYPE_CHECKING:
    from adapterhub.data.example import Example
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
    max_tokens: Annotated[int | None, typer.Option(help="Longest completion, for generation tasks.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy; for generation tasks.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed where temperature is above 0.")] = None,
) -> None:
    """Answer with one version of a task: one JSON object a line on stdout, in the order of the input."""
    if text is not None and source is not None:
        raise UsageError("give a text or --input, not both")
    if text is None and source is None and sys.stdin.isatty():
        raise UsageError("nothing to answer: give a text, --input FILE, or pipe examples in")
    with _opened(base, registry) as hub:
        target = hub.target(ref)
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        given = [text] if text is not None else (e.fields for e in _read(target, source))
        for answer in hub.answers(target, given, **options):
            emit(answer.to_record())


def evaluate(
    ref: RefArgument,
    data: Annotated[Path, typer.Option("--data", help="Labelled examples: JSONL, CSV or Parquet.")],
    base: BaseOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a version on labelled examples: each metric with its 95% interval."""
    from adapterhub.data.files import read_examples
    from adapterhub.metrics import evaluate as measure

    with _opened(base, registry) as hub:
        target = hub.target(ref)
        spec = target.spec
        if spec is None:
            raise UsageError(f"{ref!r} is a base; eval measures a version of a task")
        examples = list(read_examples(data, spec.kind, labels=spec.labels or None))
        answers = [a.answer for a in _with_progress(hub.answers(target, (e.fields for e in examples)), len(examples))]
    gold = [_gold(spec.kind, example) for example in examples]
    metrics = measure(spec.kind, gold, answers, spec.labels)
    if as_json:
        record = {"ref": ref, "digest": target.digest, "data": str(data), "rows": len(examples)}
        emit({**record, "metrics": {name: metric.to_record() for name, metric in metrics.items()}})
        return
    screen = console()
    screen.print(f"{ref} on {len(examples)} rows of {data}", markup=False, highlight=False)
    for name, metric in metrics.items():
        screen.print(f"  {name:<12} {metric.value:.4f}  (95% interval {metric.low:.4f} to {metric.high:.4f})")


def _opened(base: str | None, registry: Path | None) -> AdapterHub:
    from adapterhub.runtime.hub import AdapterHub

    return AdapterHub(base, registry)


def _read(target: Target, source: Path | None) -> Iterator[Example]:
    from adapterhub.data.files import read_examples, read_stream

    kind = target.spec.kind if target.spec is not None else "generation"
    if source is not None:
        return read_examples(source, kind, labelled=False)
    return read_stream(sys.stdin.buffer, "standard input", kind, labelled=False)


def _gold(kind: str, example: Example) -> Any:
    if kind == "classification":
        return example.label
    return example.labels if kind == "multilabel" else example.completion


def _with_progress(answers: Iterable[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    return iter(track(answers, "Answering", total=total, console=console(), transient=True))
