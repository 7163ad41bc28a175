"""Parts of a step: what one owner's flood may add to it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.engine.parts import SLOWER, Parts


def flooded(tokens: int = 1000) -> Parts:
    parts = Parts()
    parts.spend("flood", tokens)
    return parts


def test_one_owner_is_not_bound() -> None:
    parts = flooded()
    parts.begin({"flood": 500}, fixed=8)
    assert not parts.bound
    assert parts.left("flood") == math.inf


def test_a_flood_adds_half_of_what_the_quiet_one_costs() -> None:
    parts = flooded()
    parts.begin({"flood": 32, "quiet": 1}, fixed=9)
    assert parts.left("flood") == 5.0
    assert parts.left("quiet") == parts.left(None) == math.inf


def test_equals_are_not_bound() -> None:
    parts = flooded()
    parts.begin({"flood": 16, "b": 16, "c": 20}, fixed=2)
    assert not parts.bound


def test_who_used_less_is_not_bound_by_who_used_more() -> None:
    parts = flooded()
    parts.begin({"flood": 16, "quiet": 64}, fixed=8)
    assert not parts.bound


def test_a_turn_that_was_taken_changes_who_gives_way() -> None:
    parts = flooded(10)
    parts.spend("quiet", 30)
    parts.begin({"flood": 1, "quiet": 64}, fixed=9)
    assert parts.left("flood") == math.inf
    assert parts.left("quiet") == 5.0


def test_what_is_spent_beyond_a_part_is_owed_and_what_is_not_spent_is_lost() -> None:
    parts = flooded()
    parts.begin({"flood": 60, "quiet": 1}, fixed=9)
    parts.spend("flood", 12)
    parts.spend("quiet", 1)
    left = []
    for _ in range(3):
        parts.begin({"flood": 60, "quiet": 1}, fixed=9)
        left.append(parts.left("flood"))
    assert left == [-2.0, 3.0, 5.0]
    parts.begin({"flood": 60}, fixed=9)
    parts.begin({"flood": 60, "quiet": 1}, fixed=9)
    assert parts.left("flood") == 5.0  # alone it owed nobody anything


@given(
    st.lists(st.tuples(st.integers(1, 128), st.integers(1, 128)), min_size=1, max_size=60),
    st.floats(2, 100),
    st.integers(1, 100),
)
def test_a_flood_never_slows_the_least_one_more_than_said(
    steps: list[tuple[int, int]], fixed: float, largest: int
) -> None:
    """Whatever it wants, it adds at most its parts and the one piece that could not be cut."""
    parts, added, allowed = flooded(), 0, 0.0
    for loud, quiet in steps:
        parts.begin({"flood": loud, "quiet": quiet}, fixed)
        allowed += max(quiet, (SLOWER - 1) * (fixed + quiet))
        wanted = loud
        while wanted > 0 and parts.left("flood") > 0:
            piece = min(wanted, largest)
            parts.spend("flood", piece)
            added += piece
            wanted -= piece
    assert added <= allowed + largest + 1e-6


def test_lifting_pays_all_debts() -> None:
    parts = flooded()
    parts.begin({"flood": 60, "quiet": 1}, fixed=9)
    parts.spend("flood", 500)
    parts.begin({"flood": 60, "quiet": 1}, fixed=9)
    assert parts.left("flood") < 0
    parts.lift()
    parts.begin({"flood": 60, "quiet": 1}, fixed=9)
    assert parts.left("flood") == pytest.approx(5.0)


def test_nobody_is_remembered_for_ever() -> None:
    parts = flooded()
    parts.spend(None, 5)
    assert len(parts) == 1
    for _ in range(5000):
        parts.begin({}, fixed=9)
    assert len(parts) == 0
