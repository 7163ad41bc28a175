"""Metrics of pairs: whether a text's positive lies nearest, whether a chosen completion gained on the rejected one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adapterhub.data.example import Example
from adapterhub.data.prompt import input_text
from adapterhub.data.task import TaskSpec
from adapterhub.metrics import Metric, ranks, retrieval, share

from .measure import Ask, answers

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.runtime.target import Score, Target


def texts_of(spec: TaskSpec, examples: Iterable[Example]) -> dict[str, Example]:
    """Return every different text of embedding rows (texts, positives, hard negatives) as a task reads it, once each.

    The values are what to ask: the fields of the row that brought the text, it in the place of `text`.
    """
    found: dict[str, Example] = {}
    for example in examples:
        for text in (example.text, example.positive, example.negative):
            if text is not None:
                asked = _with_text(example, text)
                found.setdefault(_read(spec, asked), asked)
    return found


def retrieval_of(spec: TaskSpec, examples: Sequence[Example], ask: Ask) -> dict[str, Metric]:
    """Return recall at 1 and 5 and the mean reciprocal rank of the rows' positives.

    Each text is looked for among all different positives and hard negatives of `examples`; what is right for it in
    another row is passed over.
    """
    import numpy as np

    asked = texts_of(spec, examples)
    answered = zip(asked, answers(ask, asked.values()), strict=True)
    vectors = {text: np.array(answer.vector, np.float32) for text, answer in answered}
    pool: dict[str, int] = {}
    right: dict[str, set[int]] = defaultdict(set)
    texts, own = [], []
    for example in examples:
        text, positive, negative = (
            None if each is None else _read(spec, _with_text(example, each))
            for each in (example.text, example.positive, example.negative)
        )
        assert text is not None
        assert positive is not None, "rows were read with their positive"
        texts.append(text)
        own.append(pool.setdefault(positive, len(pool)))
        right[text].add(own[-1])
        if negative is not None:
            pool.setdefault(negative, len(pool))
    queries, candidates = (np.stack([vectors[each] for each in which]) for which in (texts, pool))
    return retrieval(ranks(queries, candidates, own, [right[text] for text in texts]))


def preference_of(hub: AdapterHub, target: Target, examples: Sequence[Example]) -> dict[str, Metric]:
    """Return preference_accuracy: the share of rows whose chosen completion gained more by the adapter than the other.

    What a completion gained is its log-probability, EOS included, less that which the bare base gives it.
    """
    bare = replace(target, adapter=None, digest=None)
    told = zip(_scores(hub, target, examples), _scores(hub, bare, examples), strict=True)
    moved = [
        (after[0].logprob - before[0].logprob) - (after[1].logprob - before[1].logprob) > 0 for after, before in told
    ]
    return {"preference_accuracy": share(sum(moved), len(moved))}


def _scores(hub: AdapterHub, target: Target, examples: Sequence[Example]) -> Iterator[list[Score]]:
    return hub.scores(target, ((example.fields, example.completions) for example in examples), ended=True)


def _with_text(example: Example, text: str) -> Example:
    return replace(example, fields={**example.fields, "text": text})


def _read(spec: TaskSpec, example: Example) -> str:
    return input_text(example, spec.kind, spec.prompt.template)
