"""Headers parsed by hand say what the safetensors library says, and broken files are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapterhub.base.tensors import read_header, stored_tensors
from adapterhub.errors import BaseError
from tests.tiny import make_tiny_base

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.int64: "i64"}


def test_tensors_are_those_the_library_reads(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    made = {
        "b": torch.randn(3, 5),
        "a": torch.randn(2, 2, 4).to(torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "empty": torch.zeros(0, 4),
        "positions": torch.arange(7),
    }
    save_file(made, file, metadata={"format": "pt"})
    found = stored_tensors(tmp_path)
    assert [tensor.name for tensor in found] == sorted(made)
    for tensor in found:
        expected = load_file(file)[tensor.name]
        raw = expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if expected.numel() else b""
        assert tensor.shape == tuple(expected.shape)
        assert tensor.elements == expected.numel()
        assert tensor.dtype_name == DTYPES[expected.dtype]
        assert tensor.is_float == expected.is_floating_point()
        assert tensor.sha256() == hashlib.sha256(raw).hexdigest()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_file_cut_short_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    file = folder / "model.safetensors"
    save_file({"a": torch.randn(4, 4), "b": torch.randn(8)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(BaseError, match=r"model\.safetensors"):
        stored_tensors(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": {}}',
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
        b"\xff\xfe",
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BaseError, match="header"):
        read_header(file)


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(BaseError, match=r"pickle.*save_pretrained"):
        stored_tensors(tmp_path)


def test_an_adapter_is_not_taken_for_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BaseError, match="adapter, not a base"):
        stored_tensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("x.safetensors", "y.safetensors"):
        save_file({"a": torch.zeros(1)}, tmp_path / name)
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseError, match=r"x\.safetensors and y\.safetensors"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../x.safetensors", "sub/x.safetensors", "gone.safetensors"])
def test_an_index_names_files_beside_it_that_exist(tmp_path: Path, shard: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(BaseError, match=shard.replace(".", r"\.")):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BaseError, match="index of shards"):
        stored_tensors(tmp_path)


def test_a_shard_is_read_where_its_tensor_lies(tmp_path: Path) -> None:
    tensor = stored_tensors(make_tiny_base(tmp_path / "base"))[0]
    raw = tensor.file.read_bytes()[tensor.start : tensor.end]
    assert tensor.sha256() == hashlib.sha256(raw).hexdigest()
