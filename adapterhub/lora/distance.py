"""How far apart two adapters are, layer by layer, without ever forming a weight change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .weights import LoraPair, LoraWeights


def update_norms(one: LoraWeights, other: LoraWeights) -> dict[str, tuple[float, float, float]]:
    """Return by module the Frobenius norms of one update, of the other, and of their difference.

    An update is `scaling * B A`, before any magnitude; a module that an adapter leaves alone has the update zero.
    """
    found = {}
    for name in sorted({*one.modules, *other.modules}):
        a, b = (each.modules.get(name) for each in (one, other))
        squares = _inner(a, a), _inner(b, b)
        apart = squares[0] + squares[1] - 2 * _inner(a, b)
        found[name] = (*(max(0.0, each) ** 0.5 for each in squares), max(0.0, apart) ** 0.5)
    return {name: (norms[0], norms[1], norms[2]) for name, norms in found.items()}


def head_distances(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Return by name the norm of the difference of two heads' tensors; None where one has none, or another shape."""
    found: dict[str, float | None] = {}
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        fits = a is not None and b is not None and a.shape == b.shape
        found[name] = float(torch.dist(a.double(), b.double())) if fits else None  # type: ignore[union-attr]
    return found


def _inner(one: LoraPair | None, other: LoraPair | None) -> float:
    """Return the sum of products of two updates' entries: that of (B1^T B2) and (A1 A2^T), which are rank by rank."""
    if one is None or other is None:
        return 0.0
    a1, b1, a2, b2 = (each.double() for each in (one.a, one.b, other.a, other.b))
    if a1.shape[1] != a2.shape[1] or b1.shape[0] != b2.shape[0]:
        return 0.0
    return one.scaling * other.scaling * float(((b1.T @ b2) * (a1 @ a2.T)).sum())
