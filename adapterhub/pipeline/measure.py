"""Answers to rows of data, with each row's place in messages, and how long a completion may become when measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base
from adapterhub.data.example import Example
from adapterhub.data.task import Kind, TaskSpec
from adapterhub.data.tokens import encode_input
from adapterhub.errors import InvalidRequest
from adapterhub.metrics import Metric, accuracy, auroc, calibration_error, evaluate, rejection_recall

if TYPE_CHECKING:
    from adapterhub.runtime.target import Prediction

# Takes fields and options, yields an answer each, in order.
Ask = Callable[..., Iterable["Prediction"]]
MARGIN = 8  # tokens beyond the longest gold completion, so that a wrong answer shows as wrong and not as cut
LEAST = 16


def answers(ask: Ask, examples: Iterable[Example], **options: Any) -> Iterator[Prediction]:
    """Yield the answer to each example in order; a refusal names the row's place."""
    places: deque[str] = deque()

    def inputs() -> Iterator[Mapping[str, Any]]:
        for example in examples:
            places.append(example.where)
            yield example.fields

    try:
        for answer in ask(inputs(), **options):
            places.popleft()
            yield answer
    except InvalidRequest as error:
        if not (places and places[0]):
            raise
        raise type(error)(f"{places[0]}: {error}", param=error.param) from error


def gold_answers(ask: Ask, examples: Sequence[Example], limits: Sequence[int]) -> Iterator[tuple[int, Prediction]]:
    """Yield (row, answer) for all rows; `limits` has the most tokens of each completion, empty where none are written.

    Rows come in the order of their limits, as one call has one limit.
    """
    caps = limits or [0] * len(examples)
    for cap in sorted(set(caps), reverse=True):
        rows = [row for row, each in enumerate(caps) if each == cap]
        options = {"max_tokens": cap} if limits else {}
        yield from zip(rows, answers(ask, [examples[row] for row in rows], **options), strict=True)


def completion_limits(base: Base, spec: TaskSpec, examples: Sequence[Example], most: int | None = None) -> list[int]:
    """Return for each row how many tokens its completion may have; empty for tasks that write none.

    That is `most`, else enough for the longest gold completion with its EOS, and never more than fits after the prompt.
    """
    if spec.kind != "generation":
        return []
    from adapterhub.base.load import load_tokenizer

    tokenizer = load_tokenizer(base, require_pad=False)
    if most is None:
        gold = [example.completion for example in examples if example.completion is not None]
        longest = max((len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in gold), default=0)
        most = max(LEAST, longest + 1 + MARGIN)
    context = min(spec.max_length, base.context_length)
    # Where nothing fits, the runtime says so.
    return [max(1, min(most, context - _prompt_tokens(tokenizer, spec, example))) for example in examples]


def _prompt_tokens(tokenizer: Any, spec: TaskSpec, example: Example) -> int:
    try:
        return len(encode_input(tokenizer, spec, example.fields))
    except InvalidRequest as error:
        raise type(error)(f"{example.where}: {error}", param=error.param) from error


def score(
    spec: TaskSpec,
    examples: Sequence[Example],
    answered: Iterable[tuple[int, Prediction]],
    outside: Sequence[Prediction] = (),
) -> dict[str, Metric]:
    """Return the metrics of (row, answer) pairs, each row answered once.

    Those of a classification are of the likeliest labels, given or not, so that tasks can be compared. What rejecting
    does stands beside them: where the task may reject, how many of `examples` get their right label all the same, and
    with answers to rows that have no label of the task (`outside`), how many of these are rejected.
    """
    assert spec.kind != "embedding", "see pairs.retrieval_of"
    by_row = dict(answered)
    found = [by_row[row] for row in range(len(examples))]
    gold = [gold_of(example, spec.kind) for example in examples]
    if spec.kind != "classification":
        return evaluate(spec.kind, gold, [answer.answer for answer in found], spec.labels)
    labels, sure = zip(*map(likeliest, found), strict=True)
    metrics = evaluate(spec.kind, gold, labels, spec.labels)
    metrics["ece"] = calibration_error(sure, [want == got for want, got in zip(gold, labels, strict=True)])
    if outside or (spec.calibration is not None and spec.calibration.reject_below is not None):
        metrics["in_scope_accuracy"] = accuracy(gold, [answer.label for answer in found])
    if outside:
        metrics["oos_recall"] = rejection_recall([answer.label for answer in outside])
        metrics["oos_auroc"] = auroc(sure, [likeliest(answer)[1] for answer in outside])
    return metrics


def likeliest(answer: Prediction) -> tuple[str, float]:
    """Return the likeliest label and its probability, whether the task gave it or found it too unlikely."""
    assert answer.probs
    label, chance = max(answer.probs.items(), key=lambda pair: pair[1])
    return (label if answer.label is None else answer.label), chance


def gold_of(example: Example, kind: Kind) -> Any:
    """Return the label, the labels or the completion of a row."""
    assert kind != "embedding", "vectors are not compared with a gold one, see pairs.found_at"
    if kind == "classification":
        return example.label
    return example.labels if kind == "multilabel" else example.completion
