"""From what a forward gave a row to the event its asker gets."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterhub.errors import CorruptAdapter

from .plan import Span
from .request import Embed, EmbeddingEvent, Event, FailedEvent, LogitsEvent, Row, Score, ScoresEvent


def finite(values: Tensor) -> bool:
    """Return whether every value is a number."""
    return bool(torch.isfinite(values).all())


def broken(row: Row) -> FailedEvent:
    """Return the end of a row whose values are not finite; it fails alone."""
    name = row.request.digest or "the base"
    return FailedEvent(CorruptAdapter(f"{name} produced NaN or infinite values; its answer is withheld"))


def head_event(row: Row, logits: Tensor) -> Event:
    """Return the answer of a classification row: logits [labels]."""
    return LogitsEvent(logits) if finite(logits) else broken(row)


def add_state(row: Row, state: Tensor) -> None:
    """Collect the pooled state [dim] of one span."""
    row.state = state if row.state is None else row.state + state


def embedding_event(row: Row) -> Event:
    """Return the answer of an embedding row all of whose spans ran; "mean" divides the sum by the prompt's length."""
    assert isinstance(row.request.ask, Embed)
    assert row.state is not None
    vector = row.state / len(row.request.tokens) if row.request.ask.pooling == "mean" else row.state
    return EmbeddingEvent(vector) if finite(vector) else broken(row)


def add_logprobs(span: Span, logprobs: list[float]) -> None:
    """Sort what a span read into its row: the first tokens after the prompt, or the rest of the next continuations."""
    row = span.row
    if not span.branches:
        row.logprobs = [[value] for value in logprobs]
        return
    left = iter(logprobs)
    for found, size in zip(_open(row), span.branches, strict=False):
        found += [next(left) for _ in range(size)]


def scores_event(row: Row) -> ScoresEvent | None:
    """Return the answer of a scoring row, or None while continuations are still to run."""
    return None if _open(row) else ScoresEvent(tuple(tuple(found) for found in row.logprobs))


def _open(row: Row) -> list[list[float]]:
    """Return what was read so far of the continuations that are not complete, in order."""
    assert isinstance(row.request.ask, Score)
    pairs = zip(row.logprobs, row.request.ask.continuations, strict=True)
    return [found for found, continuation in pairs if len(found) < len(continuation)]
