"""Weights read from a base's files are those of transformers' own model, bit for bit; what is not, is left to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from adapterhub.base.architecture import read_config
from adapterhub.base.describe import hidden_size
from adapterhub.base.llama import LlamaWeights, is_trainable, read_shape, weights_of
from adapterhub.base.load import end_tokens, load_backbone, load_network
from adapterhub.base.record import Base
from adapterhub.base.source import open_base
from adapterhub.base.stored import stored_weights
from adapterhub.errors import BaseError
from adapterhub.lora.linear import linear_shapes
from adapterhub.training.targets import Modules
from tests.tiny import FAMILIES, LLAMA3, make_tiny_base, tiny_config

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "a head size of its own": ("llama", {"head_dim": 16}),
    "one key/value head": ("llama", {"num_key_value_heads": 1}),
    "another theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}),
    "mistral": ("mistral", {}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2 with a window that is off": ("qwen2", {"use_sliding_window": False, "sliding_window": 8}),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
}


def base_of(folder: Path, case: str = "llama", **more: Any) -> Base:
    """A tiny base on the disk whose every weight says something, norms and biases included."""
    family, changes = CASES[case]
    changes = {**changes, "rms_norm_eps": 1e-4}
    make_tiny_base(folder, "llama" if family == "qwen3" else family, **({} if family == "qwen3" else changes | more))
    if family == "qwen3":
        llama = tiny_config("llama", **changes).to_dict()
        config = Qwen3Config(**{k: v for k, v in llama.items() if k not in {"model_type", "architectures", "mlp_bias"}})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    torch.manual_seed(1)
    file = folder / "model.safetensors"
    drawn = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in load_file(file).items()}
    save_file(drawn, file, {"format": "pt"})
    return open_base(str(folder), cache=folder.parent / "cache")


def change_config(base: Base, change: Callable[[dict[str, Any]], None]) -> None:
    file = base.path / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def change_weights(base: Base, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = base.path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def everything(weights: LlamaWeights) -> list[Any]:
    """All numbers and settings, in order."""
    found: list[Any] = [*weights.ends(), weights.norm.weight, weights.norm.eps, *weights.angles]
    for index in range(weights.shape.layers):
        layer = weights.layer(index)
        for stack in layer.stacks:
            found += [stack.weight, stack.bias, stack.outs]
        for norm in (layer.before, layer.between, layer.q_norm, layer.k_norm):
            found += [None] if norm is None else [norm.weight, norm.eps]
        found += [layer.silu, layer.heads, layer.kv_heads, layer.dim, layer.scale, layer.window]
    return found


def same(one: LlamaWeights, other: LlamaWeights) -> bool:
    pairs = list(zip(everything(one), everything(other), strict=True))
    return all(
        torch.equal(a, b) and a.dtype == b.dtype and a.is_contiguous() if isinstance(a, Tensor) else a == b
        for a, b in pairs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_they_are_the_models_own(tmp_path: Path, case: str, stored: torch.dtype, dtype: torch.dtype) -> None:
    base = base_of(tmp_path / "base", case)
    change_weights(base, lambda tensors: tensors.update({name: t.to(stored) for name, t in tensors.items()}))
    model = load_backbone(base, dtype)
    found, expected = stored_weights(base, dtype), weights_of(model)
    assert found.shape == read_shape(read_config(base.path))
    assert same(found, expected)
    # What windows do is in the mask that transformers builds, so it is asked by its own config.
    kinds = getattr(model.config, "layer_types", None) or ["sliding_attention"] * 3
    size = getattr(model.config, "sliding_window", None)
    assert found.shape.windows == tuple(size if kind == "sliding_attention" else None for kind in kinds)
    layer = model.base_model.layers[0]
    assert found.layer(0).scale == layer.self_attn.scaling
    assert found.shape.dim == layer.self_attn.head_dim
    assert found.shape.eps == layer.input_layernorm.variance_epsilon == model.base_model.norm.variance_epsilon == 1e-4
    assert found.shape.linear() == linear_shapes(model.base_model)
    assert found.shape.linear().keys() == Modules.of(model.base_model).linear.keys()
    assert hidden_size(base) == model.config.hidden_size


def test_shards_and_angles_of_old_checkpoints(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "tied")
    whole = everything(stored_weights(base, torch.float32))
    model = load_backbone(base, torch.float32)
    (base.path / "model.safetensors").unlink()
    model.save_pretrained(base.path, max_shard_size="40KB")
    assert len(list(base.path.glob("model-*.safetensors"))) > 1
    first = next(base.path.glob("model-*.safetensors"))
    tensors = {**load_file(first), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors, first, {"format": "pt"})
    again = everything(stored_weights(base, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True) if isinstance(a, Tensor))


def test_an_older_config_is_read_alike(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "another theta", num_key_value_heads=4)
    expected = stored_weights(base, torch.float32)

    def as_it_was(config: dict[str, Any]) -> None:
        for name in ("rope_parameters", "head_dim", "num_key_value_heads", "attention_bias", "mlp_bias", "hidden_act"):
            config.pop(name)
        config["rope_theta"], config["rope_scaling"], config["eos_token_id"] = 100000.0, None, None

    change_config(base, as_it_was)
    assert same(stored_weights(base, torch.float32), expected)
    assert same(weights_of(load_backbone(base, torch.float32)), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rope_parameters": LLAMA3}, "llama3"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"model_type": "gpt2"}, "not of the Llama family"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "change with the length"),
        ({"intermediate_size": None}, "does not say 'intermediate_size'"),
        ({"head_dim": 16}, "other weights"),
        ({"head_dim": 0}, "there is none"),
        ({"num_attention_heads": 0, "head_dim": None}, "what cannot be"),
        ({"is_causal": False}, "those behind"),
        ({"is_causal": True}, "says is_causal"),
        ({"transformers_weights": "other.safetensors"}, "says transformers_weights"),
        ({"norm_eps": 0.5}, "says norm_eps"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "two things of rotary"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "what cannot be"),
        ({"rope_parameters": None, "rope_theta": None}, "says nothing of rope_theta"),
        ({"rms_norm_eps": None}, "says nothing of rms_norm_eps"),
        ({"attention_bias": True}, "other weights"),
        ({"tie_word_embeddings": False}, "other weights"),
    ],
)
def test_what_a_config_says_beyond_is_left_to_transformers(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    base = base_of(tmp_path / "base", "tied")
    change_config(base, lambda config: config.update(change))
    with pytest.raises(ValueError, match=reason):
        stored_weights(base, torch.float32)


def test_an_output_layer_that_is_stored_counts_though_it_is_said_to_be_tied(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "tied")
    head = torch.randn(259, 32)
    change_weights(base, lambda tensors: tensors.update({"lm_head.weight": head}))
    with pytest.raises(ValueError, match="other weights"):
        stored_weights(base, torch.float32)
    model = load_backbone(base, torch.float32)
    assert torch.equal(model.lm_head.weight, head)
    table, output = weights_of(model).ends()
    assert torch.equal(output, head)
    assert not torch.equal(table, head)


def test_the_names_of_other_families_mean_nothing(tmp_path: Path) -> None:
    config = read_config(base_of(tmp_path / "base").path)
    stray = {"norm_eps": 0.5, "layer_norm_eps": 0.5, "n_heads": 2, "activation": "gelu"}
    assert read_shape({**config, **stray}) == read_shape(config)
    with pytest.raises(ValueError, match="those behind"):
        read_shape({**config, "is_causal": False})


@pytest.mark.parametrize(("case", "heads"), [("llama", 4), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)])
def test_heads_of_keys_that_a_config_does_not_count(tmp_path: Path, case: str, heads: int) -> None:
    base = base_of(tmp_path / "base", case)
    config = read_config(base.path)
    assert read_shape({**config, "num_key_value_heads": None}).kv_heads == 4
    assert read_shape({name: v for name, v in config.items() if name != "num_key_value_heads"}).kv_heads == heads
    kind = type(load_backbone(base, torch.float32).config)
    if case != "mistral":  # transformers refuses it
        assert kind(num_attention_heads=4, num_key_value_heads=None).num_key_value_heads == 4
    assert kind().num_key_value_heads == (32 if case == "llama" else heads)


def test_windows_are_said_or_left_to_transformers(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "qwen2 with windows")
    config = read_config(base.path)
    with pytest.raises(ValueError, match="does not say 'sliding_window'"):
        read_shape({name: value for name, value in config.items() if name != "sliding_window"})
    with pytest.raises(ValueError, match="2 of 3 layers"):
        read_shape({**config, "layer_types": config["layer_types"][:2]})


def test_other_weights_are_left_to_transformers(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    change_weights(base, lambda tensors: tensors.update({"model.layers.0.mlp.gate_proj.scale": torch.ones(3)}))
    with pytest.raises(ValueError, match="other weights"):
        stored_weights(base, torch.float32)
    assert isinstance(load_network(base, torch.float32), PreTrainedModel)
    change_weights(base, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    with pytest.raises(BaseError, match="lack"):
        load_network(base, torch.float32)


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    file = base.path / "model.safetensors"
    weights = stored_weights(base, torch.float32)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(BaseError, match=r"ends inside tensor 'model\.norm\.weight'"):
        everything(weights)
    with pytest.raises(BaseError, match="cut short"):
        load_network(base, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_alone_says_who_reads(tmp_path: Path, family: str) -> None:
    base = open_base(str(make_tiny_base(tmp_path / family, family)), cache=tmp_path / "cache")
    found = load_network(base, torch.float32)
    packs = family in ("llama", "mistral", "qwen2")
    assert isinstance(found, LlamaWeights if packs else PreTrainedModel)
    assert is_trainable(read_config(base.path)) == packs
    assert hidden_size(base) == 32


@pytest.mark.parametrize("said", [[2, 5], 7, None, "absent"])
def test_answers_end_where_transformers_ends_them(tmp_path: Path, said: Any) -> None:
    base = base_of(tmp_path / "base")
    file = base.path / "generation_config.json"
    if said == "absent":
        file.unlink()
    else:
        file.write_text(json.dumps({"eos_token_id": said}))
    expected = load_backbone(base, torch.float32).generation_config.eos_token_id
    named = expected if isinstance(expected, list) else [expected]
    assert end_tokens(base) == {token for token in named if token is not None}
    file.write_text("{")
    with pytest.raises(BaseError, match="what ends an answer"):
        end_tokens(base)
