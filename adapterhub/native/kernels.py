"""The shared library's functions, called on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .forest import Forest
from .plain_attention import AttentionShape

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_NO_WINDOW = 2**30

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "attention_forward": [_POINTER] * 7 + [_INT],
    "attention_backward": [_POINTER] * 9 + [_INT],
    "rms_norm_forward": [_POINTER] * 4 + [_LONG, _INT, _FLOAT, _INT],
    "rms_norm_backward": [_POINTER] * 4 + [_LONG, _INT, _FLOAT, _INT],
    "swiglu_forward": [_POINTER] * 2 + [_LONG, _INT, _INT],
    "swiglu_backward": [_POINTER] * 4 + [_LONG, _INT, _INT],
}


class _Shape(ctypes.Structure):
    _fields_ = (
        ("heads", _INT),
        ("kv_heads", _INT),
        ("dim", _INT),
        ("window", _INT),
        ("scale", _FLOAT),
    )


class _Places(ctypes.Structure):
    _fields_ = tuple((name, _LONG) for name in ("token", "head", "values", "row", "cached_head"))


class Kernels:
    """What is compiled. Tensors must be `suited` and of fitting shapes: nothing is checked here.

    Each call uses as many threads as PyTorch would. Raises OSError where the library does not load, AttributeError
    where it lacks a function.
    """

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        self._functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
        for name, arguments in _ARGUMENTS.items():
            for dtype, suffix in DTYPES.items():
                function = getattr(loaded, f"{name}_{suffix}")
                function.argtypes, function.restype = arguments, None
                self._functions[name, dtype] = function
        self._product = loaded.product_bfloat16
        self._product.argtypes, self._product.restype = [_POINTER] * 4 + [_INT] * 4, None
        self._lora_updates = loaded.lora_updates_float32
        self._lora_updates.argtypes, self._lora_updates.restype = [_POINTER] * 5 + [_INT], None
        self._decode_attention = loaded.decode_attention_float32
        self._decode_attention.argtypes = [_POINTER] * 5 + [_INT] * 3 + [_FLOAT, _INT, _INT]
        self._decode_attention.restype = None
        self.panel_rows = int(loaded.panel_rows())
        self.lanes = self.panel_rows // 2

    def attention_forward(
        self, qkv: Tensor, forest: Forest, cos: Tensor, sin: Tensor, shape: AttentionShape, out: Tensor, lse: Tensor
    ) -> None:
        """Fill `out` and `lse`."""
        self._call("attention_forward", qkv, qkv, out, lse, cos, sin, forest.address, _struct(shape))

    def attention_backward(
        self,
        dout: Tensor,
        qkv: Tensor,
        out: Tensor,
        lse: Tensor,
        forest: Forest,
        cos: Tensor,
        sin: Tensor,
        shape: AttentionShape,
        dqkv: Tensor,
    ) -> None:
        """Fill `dqkv`."""
        self._call("attention_backward", qkv, dout, qkv, out, lse, dqkv, cos, sin, forest.address, _struct(shape))

    def rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, y: Tensor) -> None:
        """Add `delta` to `x` where there is one, and fill `y`."""
        self._call("rms_norm_forward", x, x, delta, weight, y, *x.shape, eps)

    def rms_norm_backward(self, dy: Tensor, x: Tensor, weight: Tensor, eps: float, into: Tensor) -> None:
        """Add to `into`."""
        self._call("rms_norm_backward", x, dy, x, weight, into, *x.shape, eps)

    def swiglu(self, gate_up: Tensor, act: Tensor) -> None:
        """Fill `act`."""
        self._call("swiglu_forward", act, gate_up, act, *act.shape)

    def swiglu_backward(self, gate_up: Tensor, dact: Tensor, dgate_up: Tensor, act: Tensor) -> None:
        """Fill `dgate_up` and `act`."""
        self._call("swiglu_backward", act, gate_up, dact, dgate_up, act, *act.shape)

    def product(self, x: Tensor, panels: Tensor, y: Tensor) -> None:
        """Fill `y` [rows, out] for `x` [rows, in], both float32, and panels [.., pairs of in, panel_rows, 2]."""
        room = torch.empty(x.shape[0], self.panel_rows) if y.shape[1] % self.panel_rows else y
        pointers = (each.data_ptr() for each in (x, panels, y, room))
        self._product(*pointers, *x.shape, y.shape[1], torch.get_num_threads())

    def lora_updates(self, x: Tensor, y: Tensor, z: Tensor, slab: int, rows: int) -> None:
        """Add to `y`; `z` is room for the rank activations, `slab` and `rows` are addresses (slots.py)."""
        self._lora_updates(x.data_ptr(), y.data_ptr(), z.data_ptr(), slab, rows, torch.get_num_threads())

    def decode_attention(
        self, q: Tensor, cached: Tensor, entries: int, scale: float, window: int | None, out: Tensor
    ) -> None:
        """Fill rows of `out`; `entries` is an address (entries.py)."""
        values, row, head = cached.stride()[:3]
        places = _Places(q.stride(0), q.stride(1), values, row, head)
        kv_heads = cached.shape[2]
        self._decode_attention(
            q.data_ptr(), cached.data_ptr(), out.data_ptr(), ctypes.addressof(places), entries,
            kv_heads, q.shape[1] // kv_heads, q.shape[2],
            scale, _NO_WINDOW if window is None else window, torch.get_num_threads(),
        )  # fmt: skip

    def _call(self, name: str, like: Tensor, *arguments: Tensor | int | float | _Shape | None) -> None:
        plain = (
            each.data_ptr()
            if isinstance(each, Tensor)
            else ctypes.addressof(each)
            if isinstance(each, _Shape)
            else each
            for each in arguments
        )
        self._functions[name, like.dtype](*plain, torch.get_num_threads())


def suited(*tensors: Tensor) -> bool:
    """Return whether the kernels take these: of one dtype they know, on the CPU, contiguous, and without autograd."""
    dtype = tensors[0].dtype
    return (
        dtype in DTYPES
        and all(each.dtype == dtype and each.device.type == "cpu" and each.is_contiguous() for each in tensors)
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
    )


def _struct(shape: AttentionShape) -> _Shape:
    window = _NO_WINDOW if shape.window is None else shape.window
    return _Shape(shape.heads, shape.kv_heads, shape.dim, window, shape.scale)
