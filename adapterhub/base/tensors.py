"""Stored tensors read straight from safetensors files: headers parsed by hand, bytes streamed, no torch.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the data; offsets count from the data's start
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from adapterhub.errors import BaseError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_HEADER = 100_000_000  # the format's own limit
_CHUNK = 1 << 22
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: `start` and `end` are byte offsets from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of scalars."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds weights rather than positions, masks or counters."""
        return "F" in self.dtype  # F32, BF16, F8_E4M3; never I64, U8 or BOOL

    @property
    def dtype_name(self) -> str:
        """The dtype as torch calls it, where torch has a plain name for it."""
        return _DTYPES.get(self.dtype, self.dtype.lower())

    def sha256(self) -> str:
        """Hash the stored bytes, a few MiB at a time."""
        digest = hashlib.sha256()
        left = self.end - self.start
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            while left > 0:
                chunk = handle.read(min(left, _CHUNK))
                if not chunk:
                    raise BaseError(f"{self.file} ends inside tensor {self.name!r}; fetch the base again")
                digest.update(chunk)
                left -= len(chunk)
        return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the base's weights: one, or the shards its index names.

    Raises BaseError where there are none; a pickle is never read.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        raise BaseError(_no_weights(folder))
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(f"{folder / INDEX} is not an index of shards: {error!r}; fetch the base again") from error
    for name in names:
        if Path(name).name != name:
            raise BaseError(f"{folder / INDEX} names the shard {name!r}, which is not a file name; do not use it")
        if not (folder / name).is_file():
            raise BaseError(f"{folder / INDEX} names the shard {name!r}, which is missing; fetch the base again")
    return [folder / name for name in names]


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Return every stored tensor of the base in `folder`, sorted by name. Raises BaseError."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for tensor in read_header(file):
            if tensor.name in found:
                raise BaseError(
                    f"tensor {tensor.name!r} is both in {found[tensor.name].file.name} and {file.name} "
                    f"of {folder}; a base must hold each once"
                )
            found[tensor.name] = tensor
    if not found:
        raise BaseError(f"{folder} holds no tensors; fetch the base again")
    return [found[name] for name in sorted(found)]


def read_header(file: Path) -> list[StoredTensor]:
    """Return the tensors a safetensors file declares, checked against its size. Raises BaseError."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise BaseError(f"{file} is not a whole safetensors file ({size} bytes); fetch the base again")
        raw = handle.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        tensors = [_tensor(file, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(f"{file} has a broken safetensors header: {error!r}; fetch the base again") from error
    for tensor in tensors:
        if not 8 + length <= tensor.start <= tensor.end <= size:
            raise BaseError(f"{file} is cut short: tensor {tensor.name!r} lies outside it; fetch the base again")
    return tensors


def _tensor(file: Path, name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(name, entry["dtype"], tuple(int(n) for n in entry["shape"]), file, data + start, data + end)


def _no_weights(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f"{folder} is an adapter, not a base; name the base it was trained on"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{folder} holds its weights as pickle only, which can run code when it is read; load it once where you "
            "trust it and save it again with save_pretrained(folder), which writes model.safetensors"
        )
    return f"{folder} holds no {WHOLE} and no {INDEX}; a base needs its weights in one of these forms"
