"""Per-row LoRA: the fast form against the reference, over mixes of ranks, slots and dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapterhub.errors import CorruptAdapter
from adapterhub.lora.linear import AdapterLinear, RowAdapters, linear_shapes
from adapterhub.lora.ops import NO_SLOT, add_lora_reference
from adapterhub.lora.weights import LoraPair


def pair(rank: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> LoraPair:
    a = torch.randn(rank, 6, generator=generator, dtype=torch.float64).to(dtype)
    b = torch.randn(10, rank, generator=generator, dtype=torch.float64).to(dtype)
    return LoraPair(a, b, 0.5)


def layer(dtype: torch.dtype = torch.float64) -> tuple[AdapterLinear, RowAdapters]:
    rows = RowAdapters()
    return AdapterLinear(nn.Linear(6, 10, dtype=dtype), 6, 10, rows), rows


@settings(max_examples=60, deadline=None)
@given(
    life=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 70)), min_size=1, max_size=12),
    slots=st.lists(st.integers(-1, 5), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
)
def test_fast_form_equals_reference_while_adapters_come_and_go(
    life: list[tuple[int, int]], slots: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tested, rows = layer()
    resident: dict[int, LoraPair] = {}
    for slot, rank in life:  # rank 0 stands for leaving
        tested.drop(slot)
        resident.pop(slot, None)
        if rank:
            resident[slot] = pair(rank, generator)
            tested.put(slot, resident[slot])
    used = [slot if slot in resident else NO_SLOT for slot in slots]
    x = torch.randn(len(used), 6, generator=generator, dtype=torch.float64)
    rows.assign(used)
    with torch.inference_mode():
        expected = add_lora_reference(tested.frozen(x), x, torch.tensor(used), resident)
        torch.testing.assert_close(tested(x), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tested, rows = layer(dtype)
    resident = {slot: pair(rank, generator, dtype) for slot, rank in ((0, 1), (1, 8), (2, 64))}
    for slot, each in resident.items():
        tested.put(slot, each)
    x = torch.randn(2, 3, 6, generator=generator).to(dtype)
    slots = [0, 1, 2, NO_SLOT, 2, 1]
    rows.assign(slots)
    with torch.inference_mode():
        flat = x.reshape(6, 6)
        expected = add_lora_reference(tested.frozen(flat), flat, torch.tensor(slots), resident)
        tolerance = 1e-4 if dtype == torch.float32 else 0.03
        error = (tested(x).reshape(6, 10) - expected).abs().max() / expected.abs().max()
    assert float(error) < tolerance


def test_an_infinite_activation_stays_in_its_row() -> None:
    generator = torch.Generator().manual_seed(0)
    tested, rows = layer(torch.float32)
    tested.put(0, pair(4, generator, torch.float32))
    x = torch.randn(3, 6, generator=generator)
    outputs = []
    for huge in (1.0, 3e38):
        tested.drop(1)
        tested.put(1, LoraPair(torch.full((4, 6), huge), torch.full((10, 4), huge), 0.5))
        rows.assign([0, 1, NO_SLOT])
        with torch.inference_mode():
            outputs.append(tested(x))
    assert torch.equal(outputs[0][[0, 2]], outputs[1][[0, 2]])
    assert not torch.isfinite(outputs[1][1]).all()


def test_rows_without_adapters_cost_nothing() -> None:
    tested, rows = layer()
    tested.put(0, pair(4, torch.Generator().manual_seed(0)))
    rows.assign([NO_SLOT, NO_SLOT])
    x = torch.randn(2, 6, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.equal(tested(x), tested.frozen(x))
    assert rows.slots is None


def test_scaled_b_that_overflows_is_refused() -> None:
    tested, _ = layer(torch.float32)
    with pytest.raises(CorruptAdapter, match="overflows"):
        tested.put(0, LoraPair(torch.ones(1, 6), torch.full((10, 1), 3e38), 100.0))


def test_linear_shapes_name_what_an_adapter_can_sit_on() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    assert linear_shapes(network) == {"0": (5, 3), "2": (2, 5)}
