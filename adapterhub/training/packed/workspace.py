"""Memory that every step uses again: fresh pages cost more than the arithmetic on them where a machine is virtual."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor


class Workspace:
    """Named buffers that grow to the largest use and are then handed out again and again."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._buffers: dict[Hashable, Tensor] = {}

    def take(self, name: Hashable, *shape: int) -> Tensor:
        """Return an uninitialised tensor; what was handed out under this name before is overwritten."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            # A little more than asked: lines differ in length by little, and each growth leaves the old pages behind.
            self._buffers.pop(name, None)
            buffer = torch.empty(size + size // 8, dtype=self._dtype, device=self._device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)
