"""The fingerprint sees every weight, the architecture and the tokenizer, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.base.fingerprint import fingerprint, tokenizer_identity
from adapterhub.errors import BaseError
from tests.tiny import make_tiny_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "base")


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(file.read_text("utf-8"))
    change(record)
    file.write_text(json.dumps(record), "utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_it_is_a_sha256_and_the_same_twice(base: Path, tmp_path: Path) -> None:
    found = fingerprint(base)
    assert found.startswith("sha256:")
    assert len(bytes.fromhex(found.removeprefix("sha256:"))) == 32
    assert fingerprint(Path(shutil.copytree(base, tmp_path / "copy"))) == found


def test_shards_do_not_matter(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "sharded") == fingerprint(base)


def test_metadata_and_order_in_the_file_do_not_matter(base: Path) -> None:
    before = fingerprint(base)
    tensors = load_file(base / "model.safetensors")
    save_file(dict(reversed(tensors.items())), base / "model.safetensors", metadata={"format": "pt", "by": "me"})
    assert fingerprint(base) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["model.norm.weight"].add_(1e-3),
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(torch.bfloat16)}),
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].reshape(4, 8)}),
        lambda tensors: tensors.update({"model.other.weight": tensors.pop("model.norm.weight")}),
        lambda tensors: tensors.pop("lm_head.weight"),
        lambda tensors: tensors.update({"extra": torch.zeros(1)}),
    ],
    ids=["value", "dtype", "shape", "name", "missing", "more"],
)
def test_any_change_of_a_tensor_shows(base: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    before = fingerprint(base)
    edit_tensors(base, change)
    assert fingerprint(base) != before


def test_the_config_counts_where_it_shapes_the_network(base: Path) -> None:
    before = fingerprint(base)
    edit_json(base / "config.json", lambda config: config.update(architectures=["Other"], dtype="float16", use_cache=0))
    assert fingerprint(base) == before
    edit_json(base / "config.json", lambda config: config.update(rms_norm_eps=1e-4))
    assert fingerprint(base) != before


def _rename_token(record: dict[str, Any]) -> None:
    vocab = record["model"]["vocab"]
    vocab["new"] = vocab.pop("a")


TOKENIZER_CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "vocabulary": _rename_token,
    "merges": lambda record: record["model"].update(merges=[["a", "b"]]),
    "added": lambda record: record["added_tokens"].append({"id": 999, "content": "<new>", "special": True}),
    "normalizer": lambda record: record.update(normalizer={"type": "Lowercase"}),
    "pre_tokenizer": lambda record: record["pre_tokenizer"].update(use_regex=True),
    "post_processor": lambda record: record.update(post_processor={"type": "ByteLevel", "trim_offsets": True}),
}


@pytest.mark.parametrize("change", TOKENIZER_CHANGES.values(), ids=TOKENIZER_CHANGES.keys())
def test_the_tokenizer_counts(base: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    before = fingerprint(base)
    edit_json(base / "tokenizer.json", change)
    assert fingerprint(base) != before


def test_run_time_settings_of_the_tokenizer_do_not_count(base: Path) -> None:
    before = fingerprint(base)

    def change(record: dict[str, Any]) -> None:
        record["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        record["version"] = "2.0"
        record["model"].setdefault("ignore_merges", False)
        record["model"]["dropout"] = None
        record["added_tokens"].reverse()

    edit_json(base / "tokenizer.json", change)
    assert fingerprint(base) == before


def test_both_spellings_of_a_merge_are_one(base: Path) -> None:
    edit_json(base / "tokenizer.json", lambda record: record["model"].update(merges=[["a", "b"], ["ab", "c"]]))
    pairs = tokenizer_identity(base)
    edit_json(base / "tokenizer.json", lambda record: record["model"].update(merges=["a b", "ab c"]))
    assert tokenizer_identity(base) == pairs


def test_an_older_tokenizer_is_its_files(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    with pytest.raises(BaseError, match="no tokenizer"):
        fingerprint(base)
    (base / "vocab.txt").write_text("a\nb\n")
    before = fingerprint(base)
    (base / "vocab.txt").write_text("a\nc\n")
    assert fingerprint(base) != before


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', '{"added_tokens": [{}]}'])
def test_a_broken_tokenizer_is_refused(base: Path, text: str) -> None:
    (base / "tokenizer.json").write_text(text)
    with pytest.raises(BaseError, match=r"tokenizer\.json"):
        fingerprint(base)
