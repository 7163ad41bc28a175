"""Resident adapters' matrices and the rows that use them, as source/updates.cpp reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .kernels import suited


class _Slab(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("b", "low", "high", "first", "out")),
        *((name, ctypes.c_int32) for name in ("layers", "ranks", "in_features", "columns")),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("slots", "starts", "rows")),
        ("count", ctypes.c_int32),
    )


class SlabMatrices:
    """Where the matrices of adapters in slots lie; the tensors must stay there.

    `a` is [slots, sum of ranks, in]; `bs` are [slots, rank, out], one for each layer with a rank; `firsts` are the
    columns at which those layers' outputs begin among `columns`.
    """

    def __init__(self, a: Tensor, bs: Sequence[Tensor], firsts: Sequence[int], columns: int) -> None:
        self._kept = (a, *bs)
        self.suited = suited(*self._kept) and a.dtype == torch.float32
        ranks = [b.shape[1] for b in bs]
        highs = np.cumsum(ranks)
        self._arrays: list[NDArray[np.generic]] = [
            np.array([b.data_ptr() for b in bs], dtype=np.uint64),
            *(np.array(each, dtype=np.int32) for each in (highs - ranks, highs, firsts, [b.shape[2] for b in bs])),
        ]
        self.ranks = int(a.shape[1])
        pointers = (array.ctypes.data for array in self._arrays)
        self._struct = _Slab(a.data_ptr(), *pointers, len(bs), self.ranks, a.shape[2], columns)
        self.address = ctypes.addressof(self._struct)


class SlotRows:
    """Which rows of a batch use which slot."""

    def __init__(self, rows: Mapping[int, Sequence[int]]) -> None:
        self._arrays = [
            np.array(each, dtype=np.int32)
            for each in (
                list(rows),
                np.cumsum([0, *(len(each) for each in rows.values())]),
                [row for each in rows.values() for row in each],
            )
        ]
        self.count = len(self._arrays[2])
        self._struct = _Rows(*(array.ctypes.data for array in self._arrays), len(rows))
        self.address = ctypes.addressof(self._struct)
