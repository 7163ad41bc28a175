"""Low-rank updates of single rows by the adapters of their slots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.native import updates
from adapterhub.native.library import native
from adapterhub.native.slots import SlabMatrices, SlotRows
from adapterhub.native.updates import add_updates

here = pytest.mark.skipif(native() is None, reason="no kernels can be built here")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@here
@settings(max_examples=60, deadline=None)
@given(
    slots=st.lists(st.sampled_from([-1, 0, 1, 2, 4]), min_size=1, max_size=12),
    width=st.sampled_from([1, 7, 8, 40, 577]),
    layers=st.lists(
        st.tuples(st.sampled_from([1, 3, 4, 8, 17]), st.sampled_from([1, 9, 64, 600])), min_size=1, max_size=3
    ),
)
def test_each_row_by_its_slot(slots: list[int], width: int, layers: list[tuple[int, int]]) -> None:
    a, bs = draw(0, 5, sum(r for r, _ in layers), width), [draw(1, 5, *layer) for layer in layers]
    a[3], bs[0][3] = float("nan"), float("inf")  # a slot that nobody uses
    firsts = [2 + sum(out for _, out in layers[:i]) for i in range(len(layers))]  # beside layers without a rank
    columns = firsts[-1] + layers[-1][1] + 1
    x, y = draw(2, len(slots), width), draw(3, len(slots), columns)
    expected = y.double()
    for row, slot in enumerate(slots):
        start = 0
        for b, first, (rank, out) in zip(bs, firsts, layers, strict=True):
            if slot >= 0:
                z = a[slot, start : start + rank].double() @ x[row].double()
                expected[row, first : first + out] += z @ b[slot].double()
            start += rank
    rows = {slot: [i for i, each in enumerate(slots) if each == slot] for slot in sorted(set(slots) - {-1})}
    assert add_updates(y, x, SlabMatrices(a, bs, firsts, columns), SlotRows(rows))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_what_is_left_to_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SlotRows({0: [0]})
    for dtype in (torch.float64, torch.bfloat16):
        matrices = SlabMatrices(torch.ones(1, 1, 2, dtype=dtype), [torch.ones(1, 1, 2, dtype=dtype)], [0], 2)
        assert not add_updates(torch.ones(1, 2, dtype=dtype), torch.ones(1, 2, dtype=dtype), matrices, rows)
    matrices = SlabMatrices(torch.ones(1, 1, 2), [torch.ones(1, 1, 2)], [0], 2)
    monkeypatch.setattr(updates, "native", lambda: None)
    assert not add_updates(torch.ones(1, 2), torch.ones(1, 2), matrices, rows)
