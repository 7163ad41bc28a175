"""A GGUF becomes the model it was made from."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from adapterhub.base.architecture import read_config
from adapterhub.base.catalog import CATALOG
from adapterhub.base.convert import convert_gguf
from adapterhub.base.fingerprint import fingerprint
from adapterhub.base.load import load_backbone, load_tokenizer
from adapterhub.base.pull import pull
from adapterhub.base.source import open_base
from adapterhub.errors import BaseError
from tests.tiny import CHAT_TEMPLATE, SPECIALS, make_tiny_base

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"attn_q": 4, "attn_k": 2}
# Merged tokens take the places of the bytes 0xC0, 0xC1 and 0xF5, which no UTF-8 text has.
MERGED = {"À": "12", "Á": "ab", "õ": "abc"}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as llama.cpp's own converter does."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(file: Path, source: Path, *, quantised: bool = False, **changes: Any) -> None:
    """Write the tiny Llama in `source` as llama.cpp's converter would."""
    config = json.loads((source / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    tokens = [MERGED.get(token, token) for token in sorted(vocabulary, key=vocabulary.__getitem__)]
    writer = gguf.GGUFWriter(file, changes.get("architecture", "llama"))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges(["1 2", "a b", "ab c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in load_file(source / "model.safetensors").items():
        parts = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, rest = parts.partition(".") if name.startswith("model.layers.") else ("", "", parts)
        short = changes.get("rename", {}).get(NAMES[rest], NAMES[rest])
        values = tensor.float().numpy()
        if short in HEADS:
            values = permuted(values, HEADS[short])
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised and values.ndim == 2 else gguf.GGMLQuantizationType.F32
        raw = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"blk.{layer}.{short}.weight" if layer else f"{short}.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": request.param}
    return make_tiny_base(tmp_path / "source", **sizes)


def converted(tmp_path: Path, source: Path, **how: Any) -> Path:
    write_gguf(tmp_path / "model.gguf", source, **how)
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", folder, public_id="acme/tiny")
    return folder


def test_the_weights_come_back(tmp_path: Path, source: Path) -> None:
    folder = converted(tmp_path, source)
    original, found = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert original.keys() == found.keys()
    for name, tensor in original.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16)), name


def test_the_converted_base_answers_as_the_original(tmp_path: Path, source: Path) -> None:
    base = open_base(str(converted(tmp_path, source)), cache=tmp_path / "cache")
    assert (base.context_length, base.dtype) == (512, "bfloat16")
    assert read_config(base.path)["_name_or_path"] == "acme/tiny"
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    ids = torch.randint(3, 259, (2, 20))
    with torch.no_grad():
        assert torch.equal(load_backbone(base, torch.bfloat16)(ids).logits, expected(ids).logits)


def test_quantised_weights_are_near(tmp_path: Path, source: Path) -> None:
    found = load_file(converted(tmp_path, source, quantised=True) / "model.safetensors")
    for name, tensor in load_file(source / "model.safetensors").items():
        error = (found[name].float() - tensor).abs().max()
        assert error <= tensor.abs().max() / 100, name


def test_two_conversions_give_equal_bytes(tmp_path: Path, source: Path) -> None:
    write_gguf(tmp_path / "model.gguf", source, quantised=True)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        convert_gguf(tmp_path / "model.gguf", tmp_path / name, public_id="acme/tiny")
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_config_and_tokenizer(tmp_path: Path, source: Path) -> None:
    folder = converted(tmp_path, source)
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-6, 10000.0)
    assert config["tie_word_embeddings"] == json.loads((source / "config.json").read_text())["tie_word_embeddings"]
    tokenizer = load_tokenizer(open_base(str(folder), cache=tmp_path / "cache"))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.model_max_length == 512
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == tuple(SPECIALS)
    assert tokenizer("<|end|>")["input_ids"] == [2]
    text = " it is 12,  über\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_stand_alone(tmp_path: Path, source: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted(tmp_path, source) / "tokenizer.json"))
    assert tokenizer.encode("abc at 12").tokens == ["abc", "Ġ", "a", "t", "Ġ", "1", "2"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"architecture": "mamba"}, "mamba"),
        ({"tokenizer": "llama"}, "tokenizer 'llama'"),
        ({"pre": "new-rules"}, "new-rules"),
        ({"rename": {"ffn_up": "ffn_sideways"}}, "ffn_sideways"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(BaseError, match=message):
        converted(tmp_path, make_tiny_base(tmp_path / "source"), **how)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(BaseError, match="not a GGUF"):
        convert_gguf(tmp_path / "model.gguf", tmp_path, public_id="acme/tiny")


def test_a_wheel_with_a_gguf_becomes_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_base(tmp_path / "source")
    expected = converted(tmp_path, source)
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "model.gguf", "tiny/model.gguf")
    monkeypatch.setenv("ADAPTERHUB_WHEELS", str(tmp_path))
    entry = replace(
        CATALOG["smollm2-135m-instruct"],
        public_id="acme/tiny",
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        members={"tiny/model.gguf": "model.gguf"},
        fingerprint=fingerprint(expected),
    )
    base = pull(entry, tmp_path / "cache")
    # The GGUF itself is not kept beside what was made from it.
    assert {file.name for file in base.path.iterdir()} == {file.name for file in expected.iterdir()} | {"base.json"}
    assert base.fingerprint == entry.fingerprint


def test_a_disk_that_refuses_the_weights_is_an_os_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_tiny_base(tmp_path / "source"))
    with pytest.raises(OSError, match="No such file or directory"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "gone", public_id="a/b")
