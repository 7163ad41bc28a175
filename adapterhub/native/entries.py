"""Decoding rows of a line, as source/decode.cpp reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np


class _Entries(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "rows", "lengths")),
        ("count", ctypes.c_int32),
    )


class Entries:
    """For each decoding row its token of the line, its row of the cache, and how many positions it looks at."""

    def __init__(self, tokens: Sequence[int], rows: Sequence[int], lengths: Sequence[int]) -> None:
        self._arrays = [np.array(each, dtype=np.int32) for each in (tokens, rows, lengths)]
        self._struct = _Entries(*(array.ctypes.data for array in self._arrays), len(tokens))
        self.address = ctypes.addressof(self._struct)
