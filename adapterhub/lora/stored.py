"""A safetensors file read whole: one buffer, one hash, tensors as views of it.

An adapter has hundreds of small tensors. Copying, converting and checking each by itself takes several times as long as
doing so for the runs of equal dtype that the file consists of.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterhub.errors import CorruptAdapter

from .weights import check_finite

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER = 100_000_000  # bytes, as in the safetensors library


@dataclass(frozen=True)
class Entry:
    """A tensor in the file; `start` and `stop` are bytes of the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class StoredTensors:
    """The floating-point tensors of a file, as they are stored. `header` is its first bytes, `data` uint8 the rest."""

    def __init__(self, header: bytes, data: Tensor, path: Path) -> None:
        self._header, self._data, self._path = header, data, path

    @classmethod
    def read(cls, path: Path) -> StoredTensors:
        """Read `path` whole, not mapped; raises CorruptAdapter where it cannot be a safetensors file.

        A mapped file that is later changed or truncated would change a running adapter, or kill the process with
        SIGBUS.
        """
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _MAX_HEADER:
                raise _not_one(path, "its header is cut short or too long")
            header = start + file.read(length)
            if len(header) < 8 + length:
                raise _not_one(path, "its header is cut short")
            here = file.tell()
            size = file.seek(0, 2) - here
            file.seek(here)
            data = torch.empty(size, dtype=torch.uint8)
            view = data.numpy().data
            done = 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
        if done < size:
            raise _not_one(path, f"it was cut short while it was read, {size - done} bytes are missing")
        return cls(header, data, path)

    @cached_property
    def _entries(self) -> list[Entry]:
        return _parse(self._header, int(self._data.numel()), self._path)

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file; raises CorruptAdapter where its header makes no sense."""
        return [entry.name for entry in self._entries]

    def sha256(self) -> str:
        """Return the hash of the file's bytes, those that the tensors are made of, as 64 hex digits."""
        found = hashlib.sha256(self._header)
        found.update(self._data.numpy().data)
        return found.hexdigest()

    def tensors(self, dtype: torch.dtype | None = None, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the tensors (those in `names`) as stored or in `dtype`, as views of a few common buffers.

        Raises CorruptAdapter where the file is damaged, and naming a tensor with values that are not finite, as stored
        or in `dtype`.
        """
        wanted = [entry for entry in self._entries if names is None or entry.name in names]
        found: dict[str, Tensor] = {}
        for run in _runs(wanted):
            flat = self._flat(run[0].start, run[-1].stop, run[0].dtype)
            flat = flat if dtype is None else flat.to(dtype)
            views, done = {}, 0
            for entry in run:
                size = math.prod(entry.shape)
                views[entry.name] = flat[done : done + size].view(entry.shape)
                done += size
            if not _is_finite(flat):
                for name, tensor in views.items():
                    check_finite(name, tensor)
            found |= views
        return found

    def _flat(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        data = self._data[start:stop]
        # The format aligns tensors by sorting dtypes; a file that does not cannot be viewed in place.
        return (data.clone() if start % dtype.itemsize else data).view(dtype)


def _is_finite(flat: Tensor) -> bool:
    """Say whether all values are finite: a NaN is passed on by minimum and maximum (20 times faster than isfinite)."""
    if not flat.numel():
        return True
    low, high = flat.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _runs(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Yield neighbours of equal dtype; `entries` come in the order of the file."""
    run = entries[:1]
    for before, entry in pairwise(entries):
        if entry.start != before.stop or entry.dtype != before.dtype:
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _parse(header: bytes, size: int, path: Path) -> list[Entry]:
    """Return the entries in the order of their bytes; raises CorruptAdapter where they do not cover `size` exactly."""
    try:
        record = json.loads(header[8:])
        found = [_entry(name, each, path) for name, each in record.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_one(path, f"its header is damaged ({error!r})") from error
    found.sort(key=lambda entry: (entry.start, entry.stop))
    end = 0
    for entry in found:
        wanted = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start != end or entry.stop - entry.start != wanted:
            raise _not_one(path, f"tensor {entry.name!r} does not lie where its header says")
        end = entry.stop
    if end != size:
        raise _not_one(path, f"its header describes {end} bytes of data, and it has {size}")
    return found


def _entry(name: str, record: Any, path: Path) -> Entry:
    dtype = _DTYPES.get(record["dtype"])
    if dtype is None:
        raise CorruptAdapter(
            f"tensor {name!r} in {path} has dtype {record['dtype']!r}; expected floating point ({', '.join(_DTYPES)})"
        )
    start, stop = (int(each) for each in record["data_offsets"])
    shape = tuple(int(each) for each in record["shape"])
    if any(each < 0 for each in shape):
        raise ValueError(f"shape {shape}")
    return Entry(name, dtype, shape, start, stop)


def _not_one(path: Path, why: str) -> CorruptAdapter:
    return CorruptAdapter(f"{path} is not a safetensors file: {why}")
