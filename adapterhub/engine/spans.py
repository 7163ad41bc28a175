"""The next piece of a row that runs in one step."""

from __future__ import annotations

from .plan import Span
from .request import Row, Score


def next_span(row: Row, left: int, *, alone: bool) -> Span | None:
    """Return what the row runs next within `left` tokens, or None where it does not fit or nothing is left to plan.

    A prompt with a place in the cache is cut to what is left. What cannot be cut, a whole prompt without a place or
    one continuation, may exceed it where it is `alone` in the step.
    """
    if row.computed < len(row.request.tokens):
        return _prompt(row, left, alone=alone)
    return _branches(row, left, alone=alone) if isinstance(row.request.ask, Score) else None


def advance(row: Row, span: Span) -> None:
    """Count a planned span as run."""
    if span.branches:
        row.branched += len(span.branches)
    else:
        row.computed += len(span.tokens)


def planned(row: Row) -> bool:
    """Return whether all of the row but its decoding has been planned."""
    if row.computed < len(row.request.tokens):
        return False
    return not isinstance(row.request.ask, Score) or row.branched == len(_long(row.request.ask))


def _prompt(row: Row, left: int, *, alone: bool) -> Span | None:
    tokens, start = row.request.tokens, row.computed
    if row.place is None:
        fits = alone or len(tokens) <= left
        return Span(row, tokens, 0, keeps=False, last=True) if fits else None
    stop = min(len(tokens), start + left)
    last = stop == len(tokens)
    reads: tuple[tuple[int, int], ...] = ()
    if last and isinstance(row.request.ask, Score):
        reads = tuple((stop - start - 1, continuation[0]) for continuation in row.request.ask.continuations)
    return Span(row, tokens[start:stop], start, keeps=True, last=last, reads=reads)


def _branches(row: Row, left: int, *, alone: bool) -> Span | None:
    """Return as many whole continuations as fit; the last token of each is read, never run."""
    assert isinstance(row.request.ask, Score)
    tokens: list[int] = []
    lengths: list[int] = []
    reads: list[tuple[int, int]] = []
    for continuation in _long(row.request.ask)[row.branched :]:
        size = len(continuation) - 1
        if len(tokens) + size > left and not (alone and not lengths):
            break
        reads += [(len(tokens) + i, continuation[i + 1]) for i in range(size)]
        tokens += continuation[:-1]
        lengths.append(size)
    if not lengths:
        return None
    return Span(
        row,
        tuple(tokens),
        len(row.request.tokens),
        keeps=False,
        last=False,
        branches=tuple(lengths),
        reads=tuple(reads),
    )


def _long(ask: Score) -> list[tuple[int, ...]]:
    """Return the continuations that run at all: of a single token the prompt tells everything."""
    return [continuation for continuation in ask.continuations if len(continuation) > 1]
