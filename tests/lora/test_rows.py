"""Which rows go together."""

from __future__ import annotations

import torch

from adapterhub.lora.ops import NO_SLOT
from adapterhub.lora.rows import RowAdapters, Segment

ALL = frozenset(range(40))


def rows_of(*slots: int) -> RowAdapters:
    rows = RowAdapters()
    rows.assign_rows(slots)
    return rows


def test_rows_in_order_are_taken_as_they_lie() -> None:
    (group,) = rows_of(NO_SLOT, 3, 3, 4, 4).groups(ALL)
    assert (group.low, group.high, group.height, group.start, group.real) == (3, 5, 2, 1, None)
    x = torch.arange(10.0).view(5, 2)
    assert torch.equal(group.take(x), x[1:].view(2, 2, 2))
    group.give(x, 0, 2, torch.ones(2, 2, 2))
    assert torch.equal(x[0], torch.tensor([0.0, 1.0]))
    assert torch.equal(x[1:], torch.arange(2.0, 10.0).view(4, 2) + 1)


def test_uneven_rows_are_padded_and_the_padding_goes_nowhere() -> None:
    (group,) = rows_of(5, 6, 6, NO_SLOT, 6).groups(ALL)
    assert (group.low, group.high, group.height, group.start) == (5, 7, 3, None)
    y = torch.zeros(5, 1)
    group.give(y, 0, 1, torch.tensor([[[1.0], [100.0], [100.0]], [[2.0], [3.0], [4.0]]]))
    assert y.flatten().tolist() == [1.0, 2.0, 3.0, 0.0, 4.0]


def test_far_slots_make_groups_of_their_own() -> None:
    assert [(g.low, g.high) for g in rows_of(0, 2, 20, 21).groups(ALL)] == [(0, 3), (20, 22)]


def test_only_slots_that_are_present_are_grouped() -> None:
    assert [(g.low, g.high) for g in rows_of(0, 2, 20).groups(frozenset({2, 20}))] == [(2, 3), (20, 21)]
    assert rows_of(0).groups(frozenset({1})) == ()


def test_neighbouring_long_segments_of_one_adapter_become_one() -> None:
    rows = RowAdapters()
    rows.assign(
        [Segment(0, 20, 1), Segment(20, 40, 1), Segment(40, 60, 2), Segment(60, 62, 2), Segment(62, 90, NO_SLOT)]
    )
    assert rows.segments == (Segment(0, 40, 1), Segment(40, 60, 2))
    (group,) = rows.groups(ALL)
    assert group.targets.tolist() == [60, 61]
    assert rows.active == {1, 2}


def test_a_batch_without_adapters_is_known_to_be_one() -> None:
    rows = rows_of(NO_SLOT, NO_SLOT)
    assert not rows.active
    rows.assign_rows([1])
    rows.assign_rows([NO_SLOT])
    assert not rows.active
    assert rows.groups(ALL) == ()
