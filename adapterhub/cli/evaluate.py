"""`adapterhub eval`: how good a version is on labelled rows, and what the bare base is worth on the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.errors import DataError, UsageError

from .predict import BaseOption, RefArgument, check_options, open_hub
from .shared import JsonOption, RegistryOption, console, emit, say

if TYPE_CHECKING:
    from adapterhub import recipe
    from adapterhub.data.example import Example
    from adapterhub.data.task import TaskSpec
    from adapterhub.metrics import Metric
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.runtime.target import Target


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("eval")(evaluate)


def evaluate(
    ref: RefArgument,
    data: Annotated[Path, typer.Option("--data", help="Labelled examples: JSONL, CSV or Parquet.")],
    out_of_scope: Annotated[
        Path | None, typer.Option("--out-of-scope", help="Rows that have none of the labels, to measure rejections on.")
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Measure the bare base beside it, told the labels alone.")
    ] = False,
    few_shot: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Measure the bare base beside it, shown K rows of --shots answered."),
    ] = None,
    shots: Annotated[
        Path | None, typer.Option("--shots", help="Labelled rows to show the base, for --few-shot.")
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

    A generation task can be measured on preferences too, rows with chosen and rejected. The base without an adapter,
    beside it on the same rows, says what the training was worth.
    """
    from adapterhub.data.files import read_examples
    from adapterhub.pipeline.bare import measure_bare
    from adapterhub.pipeline.splits import read_outside

    _check_shots(shots, few_shot)
    with open_hub(ref, base, registry) as hub:
        target = hub.target(ref)
        spec = target.spec
        if spec is None:
            raise UsageError(f"{ref!r} is a base; eval measures a version of a task")
        kind = _kind_of_rows(data, spec)
        check_options(target, {} if max_tokens is None else {"max_tokens": max_tokens}, kind)
        if out_of_scope is not None and spec.kind != "classification":
            raise UsageError(f"--out-of-scope: for classification, but {ref!r} is a {spec.kind} task; leave it out")
        examples = list(read_examples(data, kind, labels=spec.labels or None))
        outside = read_outside(out_of_scope, spec.kind) if out_of_scope is not None else []
        told = _shown(spec, zero_shot=zero_shot, few_shot=few_shot, shots=shots)
        metrics = _measure(hub, target, spec, kind, examples, outside, max_tokens)
        bare = {count: measure_bare(hub, spec, examples, rows, _with_progress) for count, rows in told.items()}
    if not as_json:
        _tell(f"{ref} on {len(examples)} rows of {data}", metrics, bare)
        return
    record = {"ref": ref, "digest": target.digest, "data": str(data), "rows": len(examples)}
    if out_of_scope is not None:
        record |= {"out_of_scope": str(out_of_scope), "out_of_scope_rows": len(outside)}
    beside = [{"shots": count, "metrics": _records(found)} for count, found in bare.items()]
    emit({**record, "metrics": _records(metrics), **({"base": beside} if beside else {})})


def _check_shots(shots: Path | None, few_shot: int | None) -> None:
    """Raise UsageError where only one of the two options is given."""
    if few_shot is not None and shots is None:
        raise UsageError("--few-shot: name labelled rows to choose from with --shots, such as the training rows")
    if shots is not None and few_shot is None:
        raise UsageError("--shots: say how many of its rows to show with --few-shot")


def _shown(
    spec: TaskSpec, *, zero_shot: bool, few_shot: int | None, shots: Path | None
) -> dict[int, Sequence[Example]]:
    """Return the answered rows that the base is shown, by their number, for each time it is to be measured."""
    from adapterhub.data.files import read_examples
    from adapterhub.pipeline.bare import choose_shots

    found: dict[int, Sequence[Example]] = {0: ()} if zero_shot else {}
    if few_shot is not None and shots is not None:
        rows = choose_shots(list(read_examples(shots, spec.kind, labels=spec.labels or None)), spec, few_shot)
        found[len(rows)] = rows
    return found


def _records(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.to_record() for name, metric in metrics.items()}


def _tell(head: str, metrics: Mapping[str, Metric], bare: Mapping[int, Mapping[str, Metric]]) -> None:
    """Print the version's metrics, and the base's by how many answered rows it was shown."""
    say(head)
    _print(metrics)
    for count, found in bare.items():
        say(f"the base without an adapter, {f'after {count} answered rows' if count else 'told no answers'}")
        _print(found)


def _print(metrics: Mapping[str, Metric]) -> None:
    screen = console()
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


def _with_progress(answers: Iterable[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    return iter(track(answers, "Answering", total=total, console=console(), transient=True))
