"""A safetensors file read whole: its bytes are hashed, and the library makes the tensors of those very bytes.

An adapter has hundreds of small tensors. Checking and converting each by itself takes several times as long as doing so
for all tensors of a dtype in one piece.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from adapterhub.errors import AdapterError, CorruptAdapter

from .weights import check_finite

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Far above any adapter; what is larger would take the memory of everything else that runs.
MAX_BYTES = 4 << 30


class StoredTensors:
    """The floating-point tensors of a file, as they are stored. `data` is the whole file."""

    def __init__(self, data: bytes, path: Path) -> None:
        self._data, self._path = data, path

    @classmethod
    def read(cls, path: Path) -> StoredTensors:
        """Read `path` whole, not mapped; raises CorruptAdapter above 4 GiB, AdapterError where it cannot be read.

        A mapped file that is later changed or truncated would change a running adapter, or kill the process with
        SIGBUS.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > MAX_BYTES:
                    raise CorruptAdapter(f"{path} has {size} bytes; an adapter has at most {MAX_BYTES}")
                return cls(file.read(size), path)
        except OSError as error:
            raise AdapterError(f"cannot read {str(path)!r}: {error.strerror}; get permission to read it") from error

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        try:
            found: dict[str, Tensor] = load(self._data)
        except Exception as error:  # a stranger's bytes: the library and torch raise many kinds for them
            raise CorruptAdapter(f"{self._path} is not a safetensors file: {error!r}") from error
        for name, tensor in found.items():
            if tensor.dtype not in _DTYPES:
                known = ", ".join(map(str, _DTYPES))
                raise CorruptAdapter(
                    f"tensor {name!r} in {self._path} has dtype {tensor.dtype}; expected floating point ({known})"
                )
        return found

    @property
    def names(self) -> list[str]:
        """Names of all tensors; raises CorruptAdapter where the file is damaged."""
        return list(self._tensors)

    def sha256(self) -> str:
        """Return the hash of the file's bytes, those that the tensors are made of, as 64 hex digits."""
        return hashlib.sha256(self._data).hexdigest()

    def tensors(self, dtype: torch.dtype | None = None, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the tensors (those in `names`) as stored or in `dtype`.

        Raises CorruptAdapter where the file is damaged, and naming a tensor with values that are not finite, as stored
        or in `dtype`.
        """
        wanted = {name: each for name, each in self._tensors.items() if names is None or name in names}
        found = {name: each if dtype is None else each.to(dtype) for name, each in wanted.items()}
        for name, tensor in found.items():
            # A sum is finite only if all its terms are, in a twentieth of the time; else it may have overflowed.
            if not math.isfinite(tensor.sum().item()):
                check_finite(name, tensor)
        return found
