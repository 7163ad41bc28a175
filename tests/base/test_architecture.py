"""Configs spelled differently are one architecture; configs that differ are two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from adapterhub.base.architecture import _DEFAULTS, canonical_architecture, read_config, spelled_alike
from adapterhub.errors import BaseError
from tests.tiny import FAMILIES, tiny_config

IRRELEVANT = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")


@pytest.mark.parametrize("family", sorted(_DEFAULTS))
def test_defaults_are_those_of_the_library(family: str) -> None:
    library = spelled_alike(AutoConfig.for_model(family).to_dict())
    library["rope_theta"] = (library.get("rope_parameters") or {}).get("rope_theta")
    if library.get("use_sliding_window") is False:
        library.pop("sliding_window", None)
    for key, value in _DEFAULTS[family].items():
        assert library[key] == value, key


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_spelling_changes_nothing(family: str, data: st.DataObject) -> None:
    full: dict[str, Any] = tiny_config(family).to_dict()
    respelled = dict(full)
    for key in IRRELEVANT:
        if data.draw(st.booleans()):
            respelled[key] = "anything"
    for key, value in full.items():
        if isinstance(value, int) and not isinstance(value, bool) and data.draw(st.booleans()):
            respelled[key] = float(value)
        # None and false are how most configs write "not said"; a window of None says there is none.
        if (value is None or value is False) and key != "sliding_window" and data.draw(st.booleans()):
            del respelled[key]
    keys = data.draw(st.permutations(sorted(respelled)))
    assert canonical_architecture({key: respelled[key] for key in keys}) == canonical_architecture(full)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_omitted_default_is_the_default(family: str) -> None:
    full = AutoConfig.for_model(family).to_dict()
    sizes = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    said = spelled_alike(full)
    bare = {key: said[key] for key in sizes if said.get(key) is not None}
    assert canonical_architecture(bare) == canonical_architecture(full)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5000}}),
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ({"rope_scaling": None, "rope_theta": 10000}, {}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 500000}},
        ),
        ({"num_key_value_heads": 4}, {}),
        ({"head_dim": 8}, {}),
        ({"attention_bias": False, "mlp_bias": None}, {}),
    ],
)
def test_two_spellings_of_a_llama(old: dict[str, Any], new: dict[str, Any]) -> None:
    common = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    assert canonical_architecture({**common, **old}) == canonical_architecture({**common, **new})


CHANGES = [
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"head_dim": 16}),
    ("llama", {"rms_norm_eps": 1e-5}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True}),
    ("llama", {"max_position_embeddings": 256}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("gpt2", {"activation_function": "relu"}),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("bert", {"type_vocab_size": 3}),
    ("bert", {"layer_norm_eps": 1e-6}),
]


@pytest.mark.parametrize(("family", "change"), CHANGES)
def test_what_changes_the_network_changes_the_architecture(family: str, change: dict[str, Any]) -> None:
    plain = canonical_architecture(tiny_config(family).to_dict())
    assert canonical_architecture(tiny_config(family, **change).to_dict()) != plain


def test_a_window_that_is_not_used_is_no_window() -> None:
    unused = tiny_config("qwen2").to_dict() | {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1}
    assert canonical_architecture(unused) == canonical_architecture(tiny_config("qwen2").to_dict())


def test_a_nested_text_config_counts() -> None:
    outer = {"model_type": "some-vision", "text_config": {"model_type": "llama", "hidden_size": 32}}
    other = {"model_type": "some-vision", "text_config": {"model_type": "llama", "hidden_size": 64}}
    assert canonical_architecture(outer) != canonical_architecture(other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": 3}', "{"])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BaseError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no config"):
        read_config(tmp_path)


def test_read_config_reads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert read_config(tmp_path) == {"model_type": "llama"}
