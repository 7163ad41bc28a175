"""The Llama family read as stacked frozen weights: what the lean engine and lean training both compute from.

Layers that read the same input lie in one stack: q, k and v; o; gate and up; down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Rotary embeddings whose angles depend on a token's position alone; others change with the length of the text.
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
STACKS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_SILU = frozenset({"silu", "swish"})


@dataclass(frozen=True)
class NormWeights:
    """Root mean square normalisation (Zhang and Sennrich 2019): `weight` [dim] and what keeps its root from zero."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class StackWeights:
    """Frozen linear layers that read the same input, one below the other: `weight` [sum of outs, in], `bias` or None.

    `outs` are the layers' own output features.
    """

    weight: Tensor
    bias: Tensor | None
    outs: tuple[int, ...]


@dataclass(frozen=True)
class LayerWeights:
    """One transformer layer.

    `stacks` in the order of STACKS; `silu` where `act` is that; `window` None where attention sees everything before.
    """

    stacks: tuple[StackWeights, ...]
    before: NormWeights
    between: NormWeights
    q_norm: NormWeights | None
    k_norm: NormWeights | None
    act: Callable[[Tensor], Tensor]
    silu: bool
    heads: int
    kv_heads: int
    dim: int
    scale: float
    window: int | None


def check_family(config: Any) -> None:
    """Raise ValueError where a config asks for what the lean forwards do not compute."""
    if config.model_type not in FAMILIES:
        raise ValueError(f"bases of type {config.model_type!r} are not of the Llama family")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _STATIC_ROPE:
        raise ValueError(f"rotary embeddings of type {rope!r} change with the length of the text")


def is_trainable(config: Any) -> bool:
    """Say whether the packed decoder, which also runs backward, computes all that a config asks for."""
    try:
        check_family(config)
    except ValueError:
        return False
    return config.hidden_act in _SILU


def read_layer(layer: Any, config: Any) -> LayerWeights:
    """Return a layer's weights, those of each stack copied together; the layer itself is left as it is."""
    attention = layer.self_attn
    norms = (read_norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm"))
    q_norm, k_norm = norms
    return LayerWeights(
        stacks=tuple(_stacked([layer.get_submodule(name) for name in names]) for names in STACKS),
        before=read_norm(layer.input_layernorm),
        between=read_norm(layer.post_attention_layernorm),
        q_norm=q_norm,
        k_norm=k_norm,
        act=layer.mlp.act_fn,
        silu=config.hidden_act in _SILU,
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        dim=int(attention.head_dim),
        scale=float(attention.scaling),
        window=_window(attention, config),
    )


def read_norm(module: Any) -> NormWeights:
    """Return a norm's weights."""
    return NormWeights(module.weight.data, float(module.variance_epsilon))


def read_angles(backbone: Any, config: Any) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [positions, dim] as the model itself computes them: every static scaling is in them."""
    embedding = backbone.embed_tokens.weight
    span = torch.arange(int(config.max_position_embeddings), device=embedding.device)
    cos, sin = backbone.rotary_emb(embedding[:1], span[None])
    return cos[0], sin[0]


def let_go(module: nn.Module) -> None:
    """Free a module's weights, which live on in another form; the module is of no further use."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def _stacked(layers: list[nn.Linear]) -> StackWeights:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biased = any(layer.bias is not None for layer in layers)
    bias = torch.cat([_bias(layer) for layer in layers]) if biased else None
    return StackWeights(weight, bias, tuple(layer.out_features for layer in layers))


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()


def _window(attention: Any, config: Any) -> int | None:
    """Return the sliding window of an attention layer: its own where it knows one, else Mistral's for all layers."""
    if hasattr(attention, "sliding_window"):
        found = attention.sliding_window
    else:
        found = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    return None if found is None else int(found)
