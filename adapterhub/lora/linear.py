"""A frozen linear layer of a transformers model whose rows may each use another adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .rows import RowAdapters
from .slabs import LoraSlabs


class AdapterLinear(nn.Module):
    """A frozen layer (nn.Linear, or transformers' Conv1D) with the resident adapters' matrices beside it."""

    def __init__(
        self, frozen: nn.Module, in_features: int, out_features: int, rows: RowAdapters, slots: int = 1
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.in_features, self.out_features = in_features, out_features
        self._rows = rows
        weight = frozen.weight
        assert isinstance(weight, Tensor)
        self.slabs = LoraSlabs(in_features, (out_features,), weight.dtype, weight.device, slots)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., rows, in] to [..., rows, out]; rows of the flattened batch are those of RowAdapters."""
        y: Tensor = self.frozen(x)
        if self._rows.active:
            flat = y.view(-1, self.out_features)
            # A layer that sees other rows than the line's (an expert's, say) would mix up who is who.
            if flat.shape[0] != self._rows.length:
                raise RuntimeError(f"a layer got {flat.shape[0]} rows of a line of {self._rows.length}")
            bias = self.frozen.bias
            assert bias is None or isinstance(bias, Tensor)
            self.slabs.add(flat, x.reshape(-1, self.in_features), self._rows, bias)
        return y


@dataclass(frozen=True)
class PlainFrozen:
    """A frozen layer's weight [out, in] as adapters with magnitudes need it."""

    weight: Tensor

    @classmethod
    def of(cls, layer: nn.Module) -> PlainFrozen:
        """Read the weight of nn.Linear or transformers' Conv1D, which stores it as [in, out]."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return cls(weight if isinstance(layer, nn.Linear) else weight.T)

    @property
    def squares(self) -> Tensor:
        """Squared norms [out] of the weight's rows, in float32 or wider."""
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).pow(2).sum(dim=1)

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T [rows, out]."""
        return x @ self.weight.T


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (out, in) features of a layer an adapter can sit on, else None.

    transformers' Conv1D (GPT-2) stores its weight as [in, out].
    """
    if isinstance(module, AdapterLinear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if type(module).__name__ == "Conv1D":
        weight = module.weight
        assert isinstance(weight, Tensor)
        return int(weight.shape[1]), int(weight.shape[0])
    return None


def linear_shapes(backbone: nn.Module) -> dict[str, tuple[int, int]]:
    """Return name → (out, in) features of every layer of the backbone that an adapter can sit on."""
    found = {}
    for name, module in backbone.named_modules():
        if name.endswith(".frozen"):
            continue
        shape = linear_shape(module)
        if shape is not None:
            found[name] = shape
    return found
