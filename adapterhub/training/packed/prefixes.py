"""Texts that begin alike share their beginning: token sequences as a forest, each common prefix computed once.

A causal decoder's state at a token depends on the tokens before it and on nothing else, so rows with a common beginning
(a chat template's system text, "What is the …") have the same states there, and the gradients of the rows add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class _Node:
    """Tokens at depths [depth, depth + len(ids)) of one or more rows."""

    ids: tuple[int, ...]
    depth: int
    children: list[_Node] = field(default_factory=list)


@dataclass(frozen=True)
class PrefixForest:
    """A line of tokens made of segments, parents before children.

    `tokens` has one entry a token of the line. Segment i is tokens [starts[i], stops[i]) and goes on
    from segment parents[i] (-1: it begins a text). `places` say for each row where its tokens lie in the line.
    """

    tokens: list[int]
    starts: list[int]
    stops: list[int]
    parents: list[int]
    places: list[list[int]]


def plant(rows: Sequence[tuple[int, ...]], *, share: bool = True) -> PrefixForest:
    """Return the forest of token sequences, none of them empty; without `share` each row is a tree of its own."""
    if not share:
        forest = _laid_out([_Node(ids, 0) for ids in rows])
        forest.places.extend([list(range(a, b)) for a, b in zip(forest.starts, forest.stops, strict=True)])
        return forest
    roots: list[_Node] = []
    path: list[_Node] = []
    before: tuple[int, ...] = ()
    for ids in sorted(rows):
        common = _common(before, ids)
        path = _cut(path, common)
        if common < len(ids):
            node = _Node(ids[common:], common)
            (path[-1].children if path else roots).append(node)
            path.append(node)
        before = ids
    forest = _laid_out(roots)
    first = {
        (parent, forest.tokens[start]): i
        for i, (parent, start) in enumerate(zip(forest.parents, forest.starts, strict=True))
    }
    forest.places.extend([_places(forest, first, ids) for ids in rows])
    return forest


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many first tokens are the same."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def _cut(path: list[_Node], depth: int) -> list[_Node]:
    """Return the nodes that lead to `depth`; the one that goes beyond it is cut in two there."""
    kept: list[_Node] = []
    for node in path:
        if node.depth >= depth:
            break
        kept.append(node)
        if node.depth + len(node.ids) > depth:
            here = depth - node.depth
            node.children = [_Node(node.ids[here:], depth, node.children)]
            node.ids = node.ids[:here]
            break
    return kept


def _laid_out(roots: Sequence[_Node]) -> PrefixForest:
    """Write the nodes into a line, a tree after another, parents first; `places` stay empty."""
    forest = PrefixForest([], [], [], [], [])
    waiting = [(node, -1) for node in reversed(roots)]
    while waiting:
        node, parent = waiting.pop()
        waiting += [(child, len(forest.starts)) for child in reversed(node.children)]
        forest.starts.append(len(forest.tokens))
        forest.tokens.extend(node.ids)
        forest.stops.append(len(forest.tokens))
        forest.parents.append(parent)
    return forest


def _places(forest: PrefixForest, first: Mapping[tuple[int, int], int], ids: tuple[int, ...]) -> list[int]:
    """Return where the tokens of a row lie; `first` finds a segment by its parent and its first token."""
    found: list[int] = []
    segment = -1
    while len(found) < len(ids):
        segment = first[segment, ids[len(found)]]
        found += range(forest.starts[segment], forest.stops[segment])
    return found
