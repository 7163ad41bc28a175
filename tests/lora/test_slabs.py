"""Resident adapters' matrices: the fast form against the reference while adapters come and go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.errors import CorruptAdapter
from adapterhub.lora.linear import PlainFrozen
from adapterhub.lora.ops import NO_SLOT, add_lora_reference
from adapterhub.lora.rows import RowAdapters, Segment
from adapterhub.lora.slabs import LoraSlabs, Stacked
from adapterhub.lora.weights import LoraPair

IN, OUTS = 6, (10, 4, 4)
Pairs = dict[int, LoraPair]


def pairs(ranks: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Pairs:
    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return {i: LoraPair(draw(r, IN), draw(OUTS[i], r), 0.5) for i, r in enumerate(ranks) if r}


def stacked(slabs: LoraSlabs, each: Pairs) -> Stacked:
    """Plain pairs look at no frozen weight."""
    return slabs.stack(each, PlainFrozen(torch.zeros(sum(OUTS), IN)))


def reference(y: Tensor, x: Tensor, slots: Tensor, resident: dict[int, Pairs]) -> Tensor:
    parts = []
    for i, part in enumerate(y.split(OUTS, dim=1)):
        parts.append(
            add_lora_reference(part, x, slots, {slot: each[i] for slot, each in resident.items() if i in each})
        )
    return torch.cat(parts, dim=1)


RANKS = st.sampled_from([(0, 0, 0), (2, 2, 2), (4, 0, 4), (2, 2, 2), (1, 7, 3), (0, 0, 64), (16, 16, 16)])
LENGTHS = st.integers(1, 4) | st.integers(15, 20)


@settings(max_examples=150, deadline=None)
@given(
    life=st.lists(st.tuples(st.integers(0, 12), RANKS), min_size=1, max_size=14),
    parts=st.lists(st.tuples(st.integers(-1, 12), LENGTHS), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32]),  # the second where there is a kernel
)
@example(life=[(0, (2, 2, 2)), (12, (2, 2, 2))], parts=[(12, 1), (0, 1), (0, 1)], seed=0, dtype=torch.float64)
@example(life=[(0, (2, 2, 2)), (1, (2, 2, 2))], parts=[(0, 2), (1, 2)], seed=0, dtype=torch.float64)
def test_every_row_gets_its_own_adapter_and_no_other(
    life: list[tuple[int, tuple[int, ...]]], parts: list[tuple[int, int]], seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    slabs = LoraSlabs(IN, OUTS, dtype)
    resident: dict[int, Pairs] = {}
    for slot, ranks in life:  # no rank at all stands for leaving
        slabs.drop(slot)
        resident.pop(slot, None)
        if any(ranks):
            resident[slot] = pairs(ranks, generator)
            narrow = {i: LoraPair(p.a.to(dtype), p.b.to(dtype), p.scaling) for i, p in resident[slot].items()}
            slabs.put(slot, stacked(slabs, narrow))
    segments, slots = [], []
    for slot, length in parts:
        used = slot if slot in resident else NO_SLOT
        segments.append(Segment(len(slots), len(slots) + length, used))
        slots += [used] * length
    x = torch.randn(len(slots), IN, generator=generator, dtype=torch.float64)
    y = torch.randn(len(slots), sum(OUTS), generator=generator, dtype=torch.float64)
    expected = reference(y, x, torch.tensor(slots), resident)
    rows = RowAdapters()
    rows.assign(segments)
    y = y.to(dtype)
    with torch.inference_mode():
        slabs.add(y, x.to(dtype), rows)
    allowed = (1e-12, 1e-10) if dtype == torch.float64 else (1e-4, 1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(y.double(), expected, rtol=allowed[0], atol=allowed[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("repeat", [1, 16])
def test_lower_precision_stays_close(dtype: torch.dtype, repeat: int) -> None:
    generator = torch.Generator().manual_seed(0)
    slabs = LoraSlabs(IN, OUTS, dtype)
    resident = {
        slot: pairs(ranks, generator, dtype) for slot, ranks in ((0, (1, 1, 1)), (1, (8, 8, 8)), (2, (64, 0, 64)))
    }
    for slot, each in resident.items():
        slabs.put(slot, stacked(slabs, each))
    slots = [slot for slot in (0, 1, 2, NO_SLOT, 2, 1) for _ in range(repeat)]
    x = torch.randn(len(slots), IN, generator=generator).to(dtype)
    y = torch.zeros(len(slots), sum(OUTS), dtype=dtype)
    wide = {s: {i: LoraPair(p.a.double(), p.b.double(), p.scaling) for i, p in e.items()} for s, e in resident.items()}
    expected = reference(y.double(), x.double(), torch.tensor(slots), wide)
    rows = RowAdapters()
    rows.assign(Segment(i * repeat, (i + 1) * repeat, slots[i * repeat]) for i in range(6))
    slabs.add(y, x, rows)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert float((y.double() - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("rows_each", [1, 3, 16])
def test_an_infinite_activation_stays_in_its_rows(rows_each: int) -> None:
    generator = torch.Generator().manual_seed(0)
    slabs = LoraSlabs(IN, OUTS, torch.float32)
    slabs.put(0, stacked(slabs, pairs((4, 4, 4), generator, torch.float32)))
    slabs.put(2, stacked(slabs, pairs((4, 4, 4), generator, torch.float32)))
    x = torch.randn(4 * rows_each, IN, generator=generator)
    slots = [0, 1, NO_SLOT, 2]
    outputs = []
    for huge in (1.0, 3e38):
        filled = {i: LoraPair(torch.full((4, IN), huge), torch.full((out, 4), huge), 0.5) for i, out in enumerate(OUTS)}
        slabs.put(1, stacked(slabs, filled))
        rows = RowAdapters()
        rows.assign(Segment(i * rows_each, (i + 1) * rows_each, slot) for i, slot in enumerate(slots))
        y = torch.zeros(4 * rows_each, sum(OUTS))
        slabs.add(y, x, rows)
        outputs.append(y.view(4, rows_each, -1))
    assert torch.equal(outputs[0][[0, 2, 3]], outputs[1][[0, 2, 3]])
    assert not torch.isfinite(outputs[1][1]).all()


def test_scaled_b_that_overflows_is_refused() -> None:
    slabs = LoraSlabs(IN, OUTS, torch.float32)
    with pytest.raises(CorruptAdapter, match="overflows"):
        stacked(slabs, {0: LoraPair(torch.ones(1, IN), torch.full((10, 1), 3e38), 100.0)})


def test_finite_values_whose_sum_overflows_are_taken() -> None:
    slabs = LoraSlabs(IN, OUTS, torch.float32)
    (b, *_) = stacked(slabs, {0: LoraPair(torch.ones(1, IN), torch.full((10, 1), 3e38), 1.0)}).b
    assert b is not None
    assert torch.isfinite(b).all()


def test_bytes_count_what_is_resident_and_come_back_when_it_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    slabs = LoraSlabs(IN, OUTS, torch.float32)
    made = [stacked(slabs, pairs(ranks, generator, torch.float32)) for ranks in ((2, 2, 2), (4, 0, 4), (2, 2, 2))]
    for slot, each in enumerate(made):
        slabs.put(slot, each)
    assert slabs.bytes == sum(each.bytes for each in made)
    slabs.put(1, made[0])  # a newcomer takes the slot whole
    assert slabs.bytes == 3 * made[0].bytes
    for slot in range(3):
        slabs.drop(slot)
        slabs.drop(slot)
    assert slabs.bytes == 0


@pytest.mark.parametrize("repeat", [1, 20])
def test_magnitudes_scale_the_changed_weight_row_by_row(repeat: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(sum(OUTS), IN, generator=generator, dtype=torch.float64)
    bias = torch.randn(sum(OUTS), generator=generator, dtype=torch.float64)
    slabs, plain = LoraSlabs(IN, OUTS, torch.float64), PlainFrozen(weight)
    dora = pairs((2, 0, 3), generator)
    magnitude = torch.rand(OUTS[2], generator=generator, dtype=torch.float64) + 0.5
    dora[2] = LoraPair(dora[2].a, dora[2].b, 0.5, magnitude)
    slabs.put(0, slabs.stack(dora, plain))
    slabs.put(1, slabs.stack(pairs((2, 0, 3), generator), plain))
    changed = weight.clone()
    changed[: OUTS[0]] += dora[0].delta()
    last = changed[-OUTS[2] :] + dora[2].delta()
    changed[-OUTS[2] :] = last * (magnitude / torch.linalg.norm(last, dim=1))[:, None]
    x = torch.randn(3 * repeat, IN, generator=generator, dtype=torch.float64)
    y = x @ weight.T + bias
    bare = y.clone()
    rows = RowAdapters()
    rows.assign([Segment(0, repeat, 0), Segment(repeat, 2 * repeat, NO_SLOT), Segment(2 * repeat, 3 * repeat, 1)])
    slabs.add(y, x, rows, bias)
    torch.testing.assert_close(y[:repeat], x[:repeat] @ changed.T + bias, rtol=0, atol=1e-12)
    assert torch.equal(y[repeat : 2 * repeat], bare[repeat : 2 * repeat])
    slabs.drop(0)
    slabs.put(0, slabs.stack(pairs((1, 1, 1), generator), plain))  # a plain adapter after it keeps nothing of it
    once, again = bare.clone(), bare.clone()
    slabs.add(once, x, rows, bias)
    fresh = LoraSlabs(IN, OUTS, torch.float64)
    assert slabs.bytes > 0
    assert fresh.bytes == 0
    fresh.add(again, x, rows, bias)
    assert torch.equal(again, bare)
    assert not torch.equal(once[:repeat], y[:repeat])


def test_a_magnitude_over_a_row_of_zeros_is_refused() -> None:
    slabs = LoraSlabs(IN, (2,), torch.float32)
    pair = LoraPair(torch.zeros(1, IN), torch.zeros(2, 1), 1.0, torch.ones(2))
    with pytest.raises(CorruptAdapter, match="row of zeros"):
        slabs.stack({0: pair}, PlainFrozen(torch.zeros(2, IN)))
