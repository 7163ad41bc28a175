"""Rows of one or several tasks as one packed line, without padding, and where each task reads its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.native.layout import Layout
from adapterhub.training.objectives import Reads
from adapterhub.training.rows import Row

from .prefixes import plant


@dataclass(frozen=True)
class Reading:
    """Where a task finds what it reads among its own states.

    `index` int64 [reads] points into the task's states; `owner` int64 [reads] is the sequence, counted over the task's
    rows, that the read belongs to. `answers` int64 [reads] are the tokens that the states shall foretell, empty unless
    those are read. Reads follow each other sequence by sequence, token by token.
    """

    index: Tensor
    owner: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Span:
    """A task's part of a line: tokens [start, stop), and states [low, high) of those that are needed at the end."""

    start: int
    stop: int
    low: int
    high: int
    reading: Reading


@dataclass(frozen=True)
class Line:
    """A packed line. `tokens` int64 [tokens]; `needed` int64 [states] are the tokens whose last states are read.

    `places` are the line's tokens of each sequence of each span, in order.
    """

    tokens: Tensor
    layout: Layout
    needed: Tensor
    spans: tuple[Span, ...]
    places: tuple[tuple[tuple[int, ...], ...], ...]


def pack(parts: Sequence[tuple[Sequence[Row], Reads, bool]], device: torch.device | str = "cpu") -> Line:
    """Return the line of each task's rows: (rows, what is read of them, whether they share common beginnings).

    Beginnings are shared within a task only: another task's adapter makes other states of the same tokens.
    """
    tokens: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    parents: list[int] = []
    needed: list[int] = []
    spans: list[Span] = []
    places: list[tuple[tuple[int, ...], ...]] = []
    for rows, reads, share in parts:
        sequences = [each for row in rows for each in row.sequences]
        forest = plant([each.ids for each in sequences], share=share)
        start, segment, low = len(tokens), len(starts), len(needed)
        tokens += forest.tokens
        starts += [start + each for each in forest.starts]
        stops += [start + each for each in forest.stops]
        parents += [each if each < 0 else segment + each for each in forest.parents]
        read = [_read(place, each.start, reads) for place, each in zip(forest.places, sequences, strict=True)]
        wanted = sorted({place for each in read for place in each})
        needed += [start + place for place in wanted]
        at = {place: i for i, place in enumerate(wanted)}
        reading = Reading(
            torch.tensor([at[place] for each in read for place in each], device=device),
            torch.tensor([i for i, each in enumerate(read) for _ in each], device=device),
            torch.tensor(
                [token for each in sequences for token in each.ids[each.start :]] if reads == "answers" else [],
                dtype=torch.int64,
                device=device,
            ),
        )
        spans.append(Span(start, len(tokens), low, len(needed), reading))
        places.append(tuple(tuple(start + each for each in place) for place in forest.places))
    return Line(
        torch.tensor(tokens, device=device),
        Layout(tuple(starts), tuple(stops), tuple(parents)),
        torch.tensor(needed, device=device),
        tuple(spans),
        tuple(places),
    )


def _read(places: Sequence[int], start: int, reads: Reads) -> Sequence[int]:
    """Return the places of the states that are read of a sequence whose completion begins at token `start`."""
    if reads == "last":
        return places[-1:]
    return places[start - 1 : -1] if reads == "answers" else places
