"""Linear layers of a transformers model with per-row adapters."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub.lora.linear import AdapterLinear, PlainFrozen, linear_shape, linear_shapes
from adapterhub.lora.ops import NO_SLOT, add_lora_reference
from adapterhub.lora.rows import RowAdapters
from adapterhub.lora.weights import LoraPair


def test_a_wrapped_layer_adds_each_rows_update() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = RowAdapters()
    for frozen in (nn.Linear(6, 10), Conv1D(10, 6)):
        layer = AdapterLinear(frozen, 6, 10, rows)
        pair = LoraPair(torch.randn(4, 6, generator=generator), torch.randn(10, 4, generator=generator), 0.5)
        layer.slabs.put(3, layer.slabs.stack({0: pair}, PlainFrozen.of(frozen)))
        x = torch.randn(2, 2, 6, generator=generator)
        slots = [3, NO_SLOT, 3, 3]
        rows.assign_rows(slots)
        with torch.inference_mode():
            flat = x.view(4, 6)
            expected = add_lora_reference(frozen(flat), flat, torch.tensor(slots), {3: pair})
            torch.testing.assert_close(layer(x).view(4, 10), expected)


def test_rows_without_adapters_are_the_frozen_layers_bit_for_bit() -> None:
    rows = RowAdapters()
    layer = AdapterLinear(nn.Linear(6, 10), 6, 10, rows)
    layer.slabs.put(
        0, layer.slabs.stack({0: LoraPair(torch.ones(2, 6), torch.ones(10, 2), 1.0)}, PlainFrozen.of(layer.frozen))
    )
    rows.assign_rows([NO_SLOT, NO_SLOT])
    x = torch.randn(2, 6)
    with torch.inference_mode():
        assert torch.equal(layer(x), layer.frozen(x))


def test_linear_shapes_name_what_an_adapter_can_sit_on() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    assert linear_shapes(network) == {"0": (5, 3), "2": (2, 5)}
    network[0] = AdapterLinear(network[0], 3, 5, RowAdapters())
    assert linear_shapes(network) == {"0": (5, 3), "2": (2, 5)}
    assert linear_shape(Conv1D(7, 4)) == (7, 4)
