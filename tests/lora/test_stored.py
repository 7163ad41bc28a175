"""A safetensors file read whole: the same tensors as the library reads, and nothing that is not exactly such a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from adapterhub.errors import AdapterError, CorruptAdapter
from adapterhub.lora.config import AdapterConfig
from adapterhub.lora.files import build_weights
from adapterhub.lora.stored import MAX_BYTES, StoredTensors

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def put(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "some.safetensors"
    path.write_bytes(data)
    return path


def pack(header: Any, data: bytes, pad: int = 0) -> bytes:
    text = json.dumps(header).encode() + b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def one(dtype: str, shape: list[Any], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=8), st.integers(0, 9))
def test_tensors_are_those_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[tuple[int, ...], torch.dtype]], seed: int
) -> None:
    torch.manual_seed(seed)
    data = save({f"t{index}": torch.randn(shape).to(dtype) for index, (shape, dtype) in enumerate(kinds)})
    stored = StoredTensors.read(put(tmp_path_factory.mktemp("stored"), data))
    expected = load(data)
    assert stored.sha256() == hashlib.sha256(data).hexdigest()
    for dtype in (None, *DTYPES):
        found = stored.tensors(dtype)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == (dtype or tensor.dtype)
            assert torch.equal(found[name], tensor.to(found[name].dtype))
    some = set(stored.names[::2])
    assert stored.tensors(None, some).keys() == some


def test_data_that_is_not_aligned_is_read_all_the_same(tmp_path: Path) -> None:
    header = {"a": one("F16", [1], 0, 2), "b": one("F32", [1], 2, 6)}
    data = torch.tensor([1.5], dtype=torch.float16).numpy().tobytes() + torch.tensor([2.5]).numpy().tobytes()
    for pad in range(8):
        found = StoredTensors.read(put(tmp_path, pack(header, data, pad))).tensors()
        assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [1.5], "b": [2.5]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x10\0\0",
        (200).to_bytes(8, "little") + b"{}",
        (2**62).to_bytes(8, "little") + b"{}",
        pack([], b""),
        pack({"a": 1}, b""),
        pack({"a": {"dtype": "F32"}}, b""),
        pack({"a": one("F32", [1], 0, 4)}, b"\0" * 3),
        pack({"a": one("F32", [1], 0, 4)}, b"\0" * 5),
        pack({"a": one("F32", [2], 0, 4)}, b"\0" * 4),
        pack({"a": one("F32", [1], 4, 8)}, b"\0" * 8),
        pack({"a": one("F32", [1], 0, 4), "b": one("F32", [1], 0, 4)}, b"\0" * 4),
        pack({"a": one("F32", [-1, -1], 0, 4)}, b"\0" * 4),
        pack({"a": one("F32", ["x"], 0, 4)}, b"\0" * 4),
        pack({"a": {**one("F32", [1], 0, 4), "dtype": []}}, b"\0" * 4),
        (8).to_bytes(8, "little") + b"\xff" * 8,
        (400_000).to_bytes(8, "little") + b"[" * 400_000,
        pack({"a": one("F32", [1e999], 0, 4)}, b"\0" * 4),
        pack({"a": one("F32", [1], 0, 1e999)}, b"\0" * 4),  # type: ignore[arg-type]
        pack({"a": one("F32", [0, 2**64], 0, 0)}, b""),
        pack({"a": one("F32", [0, 2**63], 0, 0)}, b""),
        pack({"a": one("F32", [10**4000] * 50, 0, 4)}, b"\0" * 4),
        pack({"a": one("F32", ["1"], 0, 4)}, b"\0" * 4),
        pack({"a": one("F32", [1.0], 0, 4)}, b"\0" * 4),
        pack({"a": one("F99", [1], 0, 4)}, b"\0" * 4),
        (4).to_bytes(8, "little") + "{}".encode("utf-16-le"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CorruptAdapter, match="not a safetensors file"):
        StoredTensors.read(put(tmp_path, data)).tensors()


def test_whole_numbers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorruptAdapter, match=r"'a'.*int64.*floating point"):
        StoredTensors.read(put(tmp_path, save({"a": torch.ones(2, dtype=torch.int64)}))).tensors()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_value_that_is_not_finite_is_found_anywhere(
    tmp_path: Path, dtype: torch.dtype, value: float, place: int
) -> None:
    tensors = {name: torch.randn(5000).to(dtype) for name in ("a", "b", "c")}
    tensors["b"][place] = value
    stored = StoredTensors.read(put(tmp_path, save(tensors)))
    with pytest.raises(CorruptAdapter, match="'b' holds NaN or infinite"):
        stored.tensors()
    assert stored.tensors(names={"a", "c"}).keys() == {"a", "c"}


def test_a_value_that_is_infinite_only_in_the_dtype_it_runs_in_is_refused(tmp_path: Path) -> None:
    stored = StoredTensors.read(put(tmp_path, save({"a": torch.tensor([1e39], dtype=torch.float64)})))
    assert stored.tensors()["a"].item() == 1e39
    with pytest.raises(CorruptAdapter, match="'a' holds NaN or infinite"):
        stored.tensors(torch.float32)


def test_a_file_beyond_all_adapters_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = put(tmp_path, b"")
    with path.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(CorruptAdapter, match=f"{MAX_BYTES + 1} bytes"):
        StoredTensors.read(path)


def test_what_cannot_be_read_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"cannot read .*: Is a directory"):
        StoredTensors.read(tmp_path)


def test_heads_and_magnitudes_keep_their_precision_and_no_other_bytes(tmp_path: Path) -> None:
    prefix = "base_model.model."
    tensors = {
        f"{prefix}model.layers.0.q_proj.lora_A.weight": torch.randn(8, 64),
        f"{prefix}model.layers.0.q_proj.lora_B.weight": torch.randn(64, 8),
        f"{prefix}model.layers.0.q_proj.lora_magnitude_vector": torch.randn(64),
        f"{prefix}score.weight": torch.randn(3, 64),
    }
    stored = StoredTensors.read(put(tmp_path, save(tensors)))
    config = AdapterConfig("org/tiny", "SEQ_CLS", 8, 16.0, ("q_proj",), modules_to_save=("score",), dora=True)
    weights = build_weights(config, stored, torch.bfloat16)
    pair = weights.modules["layers.0.q_proj"]
    assert pair.magnitude is not None
    for found, name in (
        (weights.head["score.weight"], "score.weight"),
        (pair.magnitude, "model.layers.0.q_proj.lora_magnitude_vector"),
    ):
        assert torch.equal(found, tensors[f"{prefix}{name}"])
        assert found.untyped_storage().nbytes() == found.nbytes
    assert pair.a.dtype == pair.b.dtype == torch.bfloat16
    assert torch.equal(pair.a, tensors[f"{prefix}model.layers.0.q_proj.lora_A.weight"].bfloat16())
