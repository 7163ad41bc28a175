"""Texts that begin alike, as a forest: what it holds, beside the set of all their prefixes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.training.packed.prefixes import PrefixForest, plant

# Few tokens and short rows, so that many begin alike, end within one another or are equal.
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), max_size=12)


def path_of(forest: PrefixForest, token: int) -> tuple[int, ...]:
    """The text that ends at a token of the line: its segment so far and all it goes on from."""
    segment = next(i for i, stop in enumerate(forest.stops) if token < stop)
    found = forest.tokens[forest.starts[segment] : token + 1]
    while (segment := forest.parents[segment]) >= 0:
        found = forest.tokens[forest.starts[segment] : forest.stops[segment]] + found
    return tuple(found)


def check_line(forest: PrefixForest) -> None:
    """Segments are not empty, lie side by side, and come after what they go on from."""
    assert forest.starts == [0, *forest.stops][: len(forest.starts)]
    assert len(forest.tokens) == (forest.stops[-1] if forest.stops else 0)
    assert all(start < stop for start, stop in zip(forest.starts, forest.stops, strict=True))
    assert all(-1 <= parent < i for i, parent in enumerate(forest.parents))


@given(ROWS)
def test_every_row_is_found_again_and_each_prefix_stands_in_the_line_once(rows: list[tuple[int, ...]]) -> None:
    forest = plant(rows)
    check_line(forest)
    assert len(forest.places) == len(rows)
    for row, places in zip(rows, forest.places, strict=True):
        assert tuple(forest.tokens[place] for place in places) == row
        # Each of its tokens stands behind the row's own beginning, not merely behind an equal token.
        assert [path_of(forest, place) for place in places] == [row[: i + 1] for i in range(len(row))]
    # All that is shared, and nothing else: the line has a token for each prefix that any row has.
    prefixes = {row[: i + 1] for row in rows for i in range(len(row))}
    paths = [path_of(forest, token) for token in range(len(forest.tokens))]
    assert len(paths) == len(prefixes)
    assert set(paths) == prefixes


@given(ROWS)
def test_segments_are_as_long_as_they_can_be(rows: list[tuple[int, ...]]) -> None:
    # A segment ends where a row ends or where rows part: else it and the only one that goes on from it would be one.
    forest = plant(rows)
    for i, stop in enumerate(forest.stops):
        ends = any(path_of(forest, stop - 1) == row for row in rows)
        assert ends or forest.parents.count(i) > 1


@given(ROWS)
def test_without_sharing_each_row_is_a_tree_of_its_own(rows: list[tuple[int, ...]]) -> None:
    forest = plant(rows, share=False)
    check_line(forest)
    assert forest.parents == [-1] * len(rows)
    assert forest.tokens == [token for row in rows for token in row]
    assert [tuple(forest.tokens[place] for place in places) for places in forest.places] == rows
    assert sorted(place for places in forest.places for place in places) == list(range(len(forest.tokens)))


def test_a_row_that_ends_within_another_one_and_a_fork() -> None:
    forest = plant([(1, 2, 3, 4), (1, 2), (1, 2, 3, 5), (9,), (1, 2)])
    assert forest.tokens == [1, 2, 3, 4, 5, 9]
    assert forest.starts == [0, 2, 3, 4, 5]
    assert forest.parents == [-1, 0, 1, 1, -1]
    assert forest.places == [[0, 1, 2, 3], [0, 1], [0, 1, 2, 4], [5], [0, 1]]


def test_a_long_beginning_of_many_rows_is_one_segment() -> None:
    beginning = tuple(range(500))
    forest = plant([(*beginning, 1000 + i) for i in range(300)])
    assert len(forest.tokens) == 800
    assert forest.parents == [-1, *[0] * 300]
