"""What runs in one step."""

from __future__ import annotations

from dataclasses import dataclass

from .request import Row


@dataclass(frozen=True, eq=False)
class Span:
    """Tokens of one row that run together: a part of its prompt, or continuations after it.

    `past` positions of the row's cache come before them. `keeps` says that their keys and values join the cache; `last`
    that they complete the prompt. `branches` are lengths of continuations, each of which sees the past and itself
    only; empty for one line. `reads` are (offset in the span, token id) whose log-probabilities are wanted.
    """

    row: Row
    tokens: tuple[int, ...]
    past: int
    keeps: bool
    last: bool
    branches: tuple[int, ...] = ()
    reads: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """The rows that decode one token, and the spans that run beside them.

    Spans of one row come in order, its branches after all of its prompt.
    """

    decode: tuple[Row, ...] = ()
    prefill: tuple[Span, ...] = ()
