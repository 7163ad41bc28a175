"""Two versions on the same rows: how good each is, whether the difference is more than chance, where they differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base
from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.data.task import TaskSpec, a_task
from adapterhub.errors import Conflict, FileMissing, UsageError
from adapterhub.metrics import Difference, McNemar, Metric, differences, evaluate, is_right, mcnemar
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .bases import Bases
from .measure import completion_limits, gold_answers, gold_of, likeliest

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.runtime.target import Prediction

# What can be compared row by row, by kind; and rows below which a resampled F1 says nothing.
_METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "multilabel": ("micro_f1", "macro_f1"),
    "generation": ("exact_match", "field_f1"),
}
_LEAST_ROWS = 20
Watch = Callable[[Iterator[Any], int], Iterator[Any]]
"""Wraps an iterator of that many answers, to show how far it is."""


@dataclass(frozen=True)
class Row:
    """A row that the two answer differently; `right` says who is right: "first", "second" or "neither"."""

    where: str
    asked: str
    gold: Any
    first: Any
    second: Any
    right: str

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return dict(vars(self))


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `differences` are the second's metrics less the first's; `rows` those that differ.

    `seconds` are what answering took, loading the base not counted.
    """

    first: Version
    second: Version
    data: str
    count: int
    metrics: tuple[Mapping[str, Metric], Mapping[str, Metric]]
    differences: Mapping[str, Difference]
    mcnemar: McNemar
    rows: Sequence[Row]
    seconds: tuple[float, float]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        sides = {
            name: {
                "ref": version.ref,
                "digest": version.digest,
                "metrics": {key: metric.to_record() for key, metric in metrics.items()},
            }
            for name, version, metrics in zip(("first", "second"), (self.first, self.second), self.metrics, strict=True)
        }
        return {
            **sides,
            "data": self.data,
            "rows": self.count,
            "differences": {name: each.to_record() for name, each in self.differences.items()},
            "mcnemar": self.mcnemar.to_record(),
            "seconds": list(self.seconds),
            "differing": [each.to_record() for each in self.rows],
        }


@dataclass(frozen=True)
class Gate:
    """What a promotion must pass: `metric` on the rows of `data` may not be worse by more than `margin`.

    Tested on the same rows, at 5% error: too few rows cannot show it, and then it is not passed. The label that counts
    is the likeliest one, also where a task would rather give none.
    """

    metric: str
    data: Path
    margin: float


def compare(
    first: str,
    second: str,
    data: Path | Sequence[Example],
    registry: Registry,
    *,
    bases: Bases | None = None,
    watch: Watch = lambda answers, _: answers,
) -> Comparison:
    """Answer the rows of `data`, a file or rows that were read, with both versions, each on its own base, and compare.

    Raises RefNotFound, DataError, FileMissing, UsageError for versions whose answers cannot be compared (of two kinds,
    or embeddings), and what answering raises.
    """
    versions = registry.resolve(first), registry.resolve(second)
    specs = versions[0].spec(), versions[1].spec()
    kind = specs[0].kind
    if specs[1].kind != kind:
        raise UsageError(f"{first!r} is {a_task(kind)} and {second!r} {a_task(specs[1].kind)}; compare two of one kind")
    if kind == "embedding":
        raise UsageError(f"{first!r} makes vectors, which have no right and wrong; measure each with adapterhub eval")
    labels = list(dict.fromkeys([*specs[0].labels, *specs[1].labels]))
    examples = list(read_examples(data, kind, labels=tuple(labels) or None) if isinstance(data, Path) else data)
    answers: list[list[Any]] = []
    seconds: list[float] = []
    bases = Bases() if bases is None else bases
    same = versions[0].base_fingerprint == versions[1].base_fingerprint
    for sides in [(0, 1)] if same else [(0,), (1,)]:
        with _hub(bases.of(versions[sides[0]]), registry) as hub:
            for side in sides:
                hub.load([versions[side].ref])
                started = time.perf_counter()
                answers.append(_answers(hub, versions[side], specs[side], examples, watch))
                seconds.append(time.perf_counter() - started)
    gold = [gold_of(example, kind) for example in examples]
    right = [[is_right(kind, g, a) for g, a in zip(gold, each, strict=True)] for each in answers]
    return Comparison(
        *versions,
        str(data) if isinstance(data, Path) else "the rows at hand",
        len(examples),
        (evaluate(kind, gold, answers[0], labels), evaluate(kind, gold, answers[1], labels)),
        differences(kind, gold, answers[0], answers[1], labels),
        mcnemar(right[0], right[1]),
        list(_differing(examples, gold, answers, right)),
        (seconds[0], seconds[1]),
    )


def promote(
    ref: str,
    alias: str,
    registry: Registry,
    *,
    gate: Gate | None = None,
    why: str = "",
    bases: Bases | None = None,
    watch: Watch = lambda answers, _: answers,
) -> tuple[Version, Comparison | None]:
    """Have `alias` mean the version `ref` means; return it, and what was compared.

    With a gate, only if it passes against what the alias means now (where it means nothing yet there is nothing to
    compare). Raises Conflict where the gate does not pass or the alias moved while it was tested, UsageError for a
    metric that the task does not have, and what `compare` and `Registry.alias` raise.
    """
    new = registry.resolve(ref)
    if gate is not None:
        _check_gate(gate, new.spec())
    now = next((each for each in registry.versions(new.task) if alias in each.aliases), None)
    comparison = None
    if gate is not None and now is not None and now.digest != new.digest:
        comparison = compare(now.ref, new.ref, gate.data, registry, bases=bases, watch=watch)
        _check(gate, comparison, f"{new.task}@{alias}")
    moved = registry.alias(new.task, alias, new.ref, why=why, expected=[now.version if now else None])
    assert moved is not None
    return moved, comparison


def _check_gate(gate: Gate, spec: TaskSpec) -> None:
    """Raise UsageError or FileMissing for what no rows could pass, before they are answered."""
    if gate.metric not in (known := _METRICS.get(spec.kind, ())):
        raise UsageError(
            f"there is no metric {gate.metric!r} to promote by; it may be {', '.join(known) or 'none here'}"
        )
    if not gate.data.is_file():
        raise FileMissing(f"{gate.data}: there is no such file to measure on")


def _check(gate: Gate, found: Comparison, place: str) -> None:
    if gate.metric not in found.differences:
        raise UsageError(f"{found.data} gives no {gate.metric!r}; it may be {', '.join(found.differences)}")
    if found.count < _LEAST_ROWS:
        raise Conflict(f"{found.count} rows cannot show it; measure on {_LEAST_ROWS} at least")
    difference = found.differences[gate.metric]
    if difference.least >= -gate.margin:
        return
    values = [each[gate.metric].value for each in found.metrics]
    raise Conflict(
        f"{found.second.ref} was not promoted to {place}: its {gate.metric} on {found.count} rows of {found.data} is "
        f"{values[1]:.4f}, that of {found.first.ref} {values[0]:.4f}, and it may be worse by up to "
        f"{-difference.least:.4f} (95% one-sided), more than the margin of {gate.margin:g}; "
        "train a better one, allow a wider margin, or measure on more rows"
    )


@contextmanager
def _hub(base: Base, registry: Registry) -> Iterator[AdapterHub]:
    from adapterhub.runtime.hub import AdapterHub

    with AdapterHub(base, registry) as hub:
        yield hub


def _answers(hub: AdapterHub, version: Version, spec: TaskSpec, examples: Sequence[Example], watch: Watch) -> list[Any]:
    """Return what the version says to each row: its likeliest label even where it would give none, as `eval` has it."""
    target = hub.target(version.ref)
    limits = completion_limits(hub.base, spec, examples)
    found: dict[int, Prediction] = dict(
        watch(gold_answers(partial(hub.answers, target), examples, limits), len(examples))
    )
    told = [found[row] for row in range(len(examples))]
    return [likeliest(each)[0] for each in told] if spec.kind == "classification" else [each.answer for each in told]


def _differing(
    examples: Sequence[Example], gold: Sequence[Any], answers: Sequence[Sequence[Any]], right: Sequence[Sequence[bool]]
) -> Iterator[Row]:
    for row, example in enumerate(examples):
        first, second = answers[0][row], answers[1][row]
        if first == second:
            continue
        who = "first" if right[0][row] else "second" if right[1][row] else "neither"
        if right[0][row] and right[1][row]:
            continue  # two ways to write the same completion
        yield Row(example.where, example.text, gold[row], first, second, who)
