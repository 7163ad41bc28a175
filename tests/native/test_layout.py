"""Layouts of packed lines, and how they are cut for the kernels."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.native.forest import PIECE
from adapterhub.native.layout import Layout

from .making import layouts


def test_positions_go_on_where_the_parent_ends() -> None:
    layout = Layout.of([3, 2, 2, 1], [-1, 0, 0, 2])
    assert layout.starts == (0, 3, 5, 7)
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert (layout.tokens, layout.longest) == (8, 6)
    assert Layout.of([2, 3]).positions.tolist() == [0, 1, 0, 1, 2]
    assert (Layout.of([]).tokens, Layout.of([]).longest) == (0, 0)


@pytest.mark.parametrize(
    ("starts", "stops", "parents", "message"),
    [
        ((0,), (1, 2), (-1,), "differ in number"),
        ((1,), (2,), (-1,), "side by side"),
        ((0, 3), (2, 4), (-1, -1), "side by side"),
        ((0, 2), (2, 2), (-1, -1), "no tokens"),
        ((0, 2), (2, 3), (-1, 1), "does not come before"),
        ((0,), (2,), (-2,), "does not come before"),
    ],
)
def test_what_is_no_forest_is_refused(
    starts: tuple[int, ...], stops: tuple[int, ...], parents: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(starts, stops, parents)


@given(layouts(longest=400), st.data())
def test_every_token_is_owned_once_and_finds_all_its_ancestors(layout: Layout, data: st.DataObject) -> None:
    arrays = {name: array.tolist() for name, array in layout.forest.arrays.items()}
    owned: Counter[int] = Counter()
    sums: Counter[int] = Counter()
    for start, stop in zip(arrays["part_starts"], arrays["part_starts"][1:], strict=False):
        members, parents = arrays["members"][start:stop], arrays["parents"][start:stop]
        for k, piece in enumerate(members):
            assert arrays["lengths"][piece] <= PIECE
            owned[piece] += arrays["owned"][start + k]
            sums[piece] += 1
            above = parents[k]
            assert above < k
            depth = 0 if above < 0 else arrays["depths"][members[above]] + arrays["lengths"][members[above]]
            assert depth == arrays["depths"][piece]
    assert set(owned.values()) == {1}
    assert sum(arrays["lengths"]) == layout.tokens
    shared = {
        piece: arrays["shared_starts"][i + 1] - arrays["shared_starts"][i] for i, piece in enumerate(arrays["shared"])
    }
    assert shared == {piece: count for piece, count in sums.items() if count > 1}
    copies = [(at, at + arrays["lengths"][piece]) for i, piece in enumerate(arrays["shared"])
              for at in arrays["copies"][arrays["shared_starts"][i] : arrays["shared_starts"][i + 1]]]  # fmt: skip
    room = sorted(copies)
    assert all(a[1] == b[0] for a, b in pairwise(room))
    token = data.draw(st.integers(0, layout.tokens - 1))
    piece = next(i for i, start in enumerate(arrays["starts"]) if start <= token < start + arrays["lengths"][i])
    assert arrays["depths"][piece] + token - arrays["starts"][piece] == layout.positions[token]


def test_a_line_of_one_text_is_shared_by_many_parts() -> None:
    arrays = Layout.of([2000]).forest.arrays
    assert len(arrays["part_starts"]) - 1 > 8
    assert len(Layout.of([30] * 40).forest.arrays["part_starts"]) - 1 == 40
