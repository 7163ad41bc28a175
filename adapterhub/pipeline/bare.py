"""The bare base on a task: what it answers without any adapter, told the labels alone or shown a few answered rows.

For labels it is asked as a prompt voter is: which label's name is likeliest after the text, set upright by what it says
of all rows together. For generation it is asked just as the task's adapter is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterhub.data.example import Example, asked_of
from adapterhub.data.prompt import render_messages, render_text
from adapterhub.data.task import TaskSpec, a_task
from adapterhub.errors import UsageError
from adapterhub.labeling.prompts import PromptVoter
from adapterhub.metrics import Metric, evaluate

from .measure import completion_limits, gold_answers, gold_of
from .voters import cast_votes

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub

Watch = Callable[[Iterator[Any], int], Iterator[Any]]
_GIVEN = "_given"  # the field of a voter's prompt that stands for the row as the task reads it


def choose_shots(examples: Sequence[Example], spec: TaskSpec, count: int, seed: int = 0) -> list[Example]:
    """Return `count` answered rows, always the same ones for a seed: of each label as many, as far as they reach."""
    draw = random.Random(seed)  # noqa: S311 (a choice that can be repeated, no secret)
    order = draw.sample(list(examples), len(examples))
    if spec.kind != "classification":
        return order[:count]
    by_label: dict[str, list[Example]] = {label: [] for label in draw.sample(spec.labels, len(spec.labels))}
    for example in order:
        by_label[str(example.label)].append(example)
    most = max(map(len, by_label.values()), default=0)
    ranked = [rows[turn] for turn in range(most) for rows in by_label.values() if turn < len(rows)]
    chosen = ranked[:count]
    return draw.sample(chosen, len(chosen))


def measure_bare(
    hub: AdapterHub,
    spec: TaskSpec,
    examples: Sequence[Example],
    shots: Sequence[Example] = (),
    watch: Watch = lambda answers, _: answers,
) -> dict[str, Metric]:
    """Return the base's metrics on the examples of a task, after the answered `shots`, if any.

    Raises UsageError for a kind that a base cannot be asked for, and for an encoder, which cannot be asked at all.
    """
    if hub.base.is_encoder:
        raise UsageError(f"base {hub.base.name!r} is an encoder; without an adapter it answers nothing")
    gold = [gold_of(example, spec.kind) for example in examples]
    if spec.kind == "classification":
        return evaluate(spec.kind, gold, _labels(hub, spec, examples, shots), spec.labels)
    if spec.kind == "generation":
        return evaluate(spec.kind, gold, _completions(hub, spec, examples, shots, watch), spec.labels)
    raise UsageError(f"a base without an adapter cannot be measured on {a_task(spec.kind)}; leave the base out")


def label_prompt(spec: TaskSpec, shots: Sequence[Example]) -> PromptVoter:
    """Return the voter that stands for the base on a classification task: names of the labels, shots, then the row."""
    lines = [f"Each text belongs to one of these categories: {', '.join(map(_spoken, spec.labels))}.", ""]
    for shot in shots:
        lines += [f"Text: {render_text(spec.prompt, shot.fields)}", f"Category: {_spoken(str(shot.label))}", ""]
    escaped = "\n".join(lines).replace("{", "{{").replace("}", "}}")
    words = {label: f" {_spoken(label)}" for label in spec.labels}
    return PromptVoter.model_validate(
        {"name": "base", "prompt": f"{escaped}\nText: {{{_GIVEN}}}\nCategory:", "words": words}
    )


def _labels(hub: AdapterHub, spec: TaskSpec, examples: Sequence[Example], shots: Sequence[Example]) -> list[str]:
    voter = label_prompt(spec, shots)
    rows = [
        Example(row.id, {_GIVEN: render_text(spec.prompt, asked_of(row, spec.kind))}, where=row.where)
        for row in examples
    ]
    return [str(vote) for vote in cast_votes(voter, rows, hub).votes]


def _completions(
    hub: AdapterHub, spec: TaskSpec, examples: Sequence[Example], shots: Sequence[Example], watch: Watch
) -> list[str]:
    """Return what the base writes to each row: in a chat the shots are turns before, else texts before."""
    from adapterhub.runtime.target import Target

    rows = [_rendered(spec, row, shots) for row in examples]
    # The rows are rendered already: the task's own template must not be filled in again.
    bare = replace(spec, prompt=replace(spec.prompt, template=None, system=None))
    target = Target(hub.base.name, bare)
    # Nobody taught the base where to stop: after a blank line it would make up further rows.
    ask = partial(hub.answers, target, stop=("\n\n",))
    found = dict(watch(gold_answers(ask, rows, completion_limits(hub.base, bare, rows)), len(rows)))
    return [str(found[row].completion).strip() for row in range(len(rows))]


def _rendered(spec: TaskSpec, row: Example, shots: Sequence[Example]) -> Example:
    """Return the row with what the base reads as its prompt or messages, and its completion."""
    if spec.prompt.style == "plain":
        before = "".join(f"{_text(spec, shot)}{shot.completion}\n\n" for shot in shots)
        return replace(row, fields={"prompt": before + _text(spec, row), "completion": row.completion})
    turns: list[dict[str, str]] = []
    for each in (*shots, row):
        said = render_messages(spec.prompt, asked_of(each, spec.kind))
        turns += [turn for turn in said if not turns or turn["role"] != "system"]
        turns.append({"role": "assistant", "content": str(each.completion)})
    return replace(row, fields={"messages": turns})


def _text(spec: TaskSpec, row: Example) -> str:
    return render_text(spec.prompt, asked_of(row, spec.kind), "prompt")


def _spoken(label: str) -> str:
    return label.replace("_", " ").replace("-", " ")
