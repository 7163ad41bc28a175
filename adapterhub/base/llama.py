"""The Llama family read as stacked frozen weights: what the lean engine and lean training both compute from.

Layers that read the same input lie in one stack: q, k and v; o; gate and up; down. The weights come from a base's files
(`stored.py`) or out of a transformers model of the family (`weights_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .architecture import is_alias, rope_parameters, spelled_alike

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
# Heads of keys and values where a config does not say how many; Llama has as many as of queries.
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
EMBEDDING, NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_BEFORE, _BETWEEN = "input_layernorm.weight", "post_attention_layernorm.weight"
_Q_NORM, _K_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"


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


@dataclass(frozen=True)
class LlamaShape:
    """What a config says of a network of the family.

    `windows` has for each layer how far it sees back, None for everything; `rope` is `rope_type`, `rope_theta` and what
    that type needs; `biased` are the linear layers that have one.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    dim: int
    vocabulary: int
    positions: int
    eps: float
    act: str
    rope: Mapping[str, Any]
    windows: tuple[int | None, ...]
    tied: bool
    biased: frozenset[str]
    initializer_range: float

    @property
    def silu(self) -> bool:
        """Whether gates are SiLU, which the packed backward knows."""
        return self.act in _SILU

    def linear(self) -> dict[str, tuple[int, int]]:
        """Return name in the backbone → (out, in) features of every layer that an adapter can sit on, in order."""
        return {f"layers.{layer}.{name}": size for layer in range(self.layers) for name, size in self._sizes().items()}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the names, as transformers stores them, and shapes of all weights."""
        found: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocabulary, self.hidden), NORM: (self.hidden,)}
        if not self.tied:
            found[OUTPUT] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            root = f"model.layers.{layer}."
            found |= {f"{root}{_BEFORE}": (self.hidden,), f"{root}{_BETWEEN}": (self.hidden,)}
            if self.family == "qwen3":
                found |= {f"{root}{_Q_NORM}": (self.dim,), f"{root}{_K_NORM}": (self.dim,)}
            for name, size in self._sizes().items():
                found[f"{root}{name}.weight"] = size
                if name in self.biased:
                    found[f"{root}{name}.bias"] = size[:1]
        return found

    def _sizes(self) -> dict[str, tuple[int, int]]:
        queries, keys = self.heads * self.dim, self.kv_heads * self.dim
        outs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": self.hidden}
        outs |= {"gate_proj": self.intermediate, "up_proj": self.intermediate, "down_proj": self.hidden}
        ins = {"o_proj": queries, "down_proj": self.intermediate}
        named = [(name, name.rpartition(".")[2]) for names in STACKS for name in names]
        return {name: (outs[last], ins.get(last, self.hidden)) for name, last in named}


def read_shape(config: Mapping[str, Any]) -> LlamaShape:
    """Return what the entries of config.json say. Raises ValueError for what the lean forwards do not compute."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"bases of type {family!r} are not of the Llama family")
    # Other families' names of the same thing mean nothing in these.
    said = spelled_alike({name: value for name, value in config.items() if not is_alias(name)})
    if said.get("is_causal") is False:
        raise ValueError("its tokens see those behind them")
    try:
        rope = {"rope_type": "default", **rope_parameters(said)}
        if rope["rope_type"] not in _STATIC_ROPE:
            raise ValueError(f"rotary embeddings of type {rope['rope_type']!r} change with the length of the text")
        hidden, heads = int(said["hidden_size"]), int(said["num_attention_heads"])
        layers = int(said["num_hidden_layers"])
        kv_heads = config.get("num_key_value_heads", heads if family == "llama" else _KV_HEADS[family])
        shape = LlamaShape(
            family=family,
            layers=layers,
            hidden=hidden,
            intermediate=int(said["intermediate_size"]),
            heads=heads,
            kv_heads=heads if kv_heads is None else int(kv_heads),
            dim=hidden // heads if said.get("head_dim") is None else int(said["head_dim"]),
            vocabulary=int(said["vocab_size"]),
            positions=int(said["max_position_embeddings"]),
            eps=float(said["norm_eps"]),
            act=str(said["hidden_act"]),
            rope=rope,
            windows=_windows(said, layers),
            tied=bool(said.get("tie_word_embeddings", False)),
            biased=_biased(said),
            initializer_range=float(said.get("initializer_range", 0.02)),
        )
    except KeyError as error:
        raise ValueError(f"its config does not say {error}") from error
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"its config says what cannot be: {error}") from error
    if min(hidden, heads, layers, shape.kv_heads, shape.dim, shape.vocabulary, shape.positions) < 1:
        raise ValueError("its config says of something that there is none")
    return shape


def is_trainable(config: Mapping[str, Any]) -> bool:
    """Say whether the packed decoder, which also runs backward, computes all that config.json asks for."""
    try:
        return read_shape(config).silu
    except ValueError:
        return False


def _biased(said: Mapping[str, Any]) -> frozenset[str]:
    """Return the linear layers of each family that have a bias."""
    qkv, out, gate_up, down = STACKS
    if said["model_type"] == "qwen2":
        return frozenset(qkv)
    chosen: tuple[str, ...] = ()
    if said["model_type"] in {"llama", "qwen3"} and said.get("attention_bias"):
        chosen += qkv + out
    if said["model_type"] == "llama" and said.get("mlp_bias"):
        chosen += gate_up + down
    return frozenset(chosen)


def _windows(said: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Return how far each layer sees back: Mistral's all alike, Qwen's some."""
    if said["model_type"] == "mistral":
        size = said["sliding_window"]
        return (None if size is None else int(size),) * layers
    if said["model_type"] == "llama" or not said.get("use_sliding_window"):
        return (None,) * layers
    size = said["sliding_window"]
    kinds = said.get("layer_types")
    if kinds is None:
        first = int(said["max_window_layers"])
        kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    if len(kinds) != layers:
        raise ValueError(f"its config says how {len(kinds)} of {layers} layers attend")
    return tuple(None if size is None or kind != "sliding_attention" else int(size) for kind in kinds)


class Tensors(Protocol):
    """Where the weights are taken from."""

    def get(self, name: str) -> Tensor:
        """Return a tensor by the name that transformers stores it under."""

    def free(self, prefix: str) -> None:
        """Let go of all tensors whose names begin so: they live on in another form."""


@dataclass(frozen=True)
class LlamaWeights:
    """A network of the family, its layers to be taken one after another: `layer` copies, `free` lets the source go.

    `angles` are cosine and sine [positions, dim]; `act` is what gates go through.
    """

    shape: LlamaShape
    source: Tensors
    angles: tuple[Tensor, Tensor]
    act: Callable[[Tensor], Tensor]

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the table of tokens and the output layer [vocabulary, hidden], one tensor where they are tied."""
        table = self.source.get(EMBEDDING)
        return table, table if self.shape.tied else self.source.get(OUTPUT)

    @property
    def norm(self) -> NormWeights:
        """The norm behind the last layer."""
        return NormWeights(self.source.get(NORM), self.shape.eps)

    def layer(self, index: int) -> LayerWeights:
        """Return a layer's weights, those of each stack copied together."""
        root, shape = f"model.layers.{index}.", self.shape
        named = (_BEFORE, _BETWEEN, *((_Q_NORM, _K_NORM) if shape.family == "qwen3" else ()))
        before, between, *inner = (NormWeights(self.source.get(f"{root}{name}"), shape.eps) for name in named)
        q_norm, k_norm = inner or (None, None)
        return LayerWeights(
            stacks=tuple(self._stacked(root, names) for names in STACKS),
            before=before,
            between=between,
            q_norm=q_norm,
            k_norm=k_norm,
            act=self.act,
            silu=shape.silu,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            dim=shape.dim,
            scale=shape.dim**-0.5,
            window=shape.windows[index],
        )

    def free(self, index: int) -> None:
        """Let go of a layer that was taken."""
        self.source.free(f"model.layers.{index}.")

    def free_output(self) -> None:
        """Let go of the output layer that was taken, unless it is the table of tokens."""
        if not self.shape.tied:
            self.source.free(OUTPUT)

    def _stacked(self, root: str, names: tuple[str, ...]) -> StackWeights:
        parts = [self.source.get(f"{root}{name}.weight") for name in names]
        biased = any(name in self.shape.biased for name in names)
        bias = torch.cat([self.source.get(f"{root}{name}.bias") for name in names]) if biased else None
        return StackWeights(torch.cat(parts), bias, tuple(len(part) for part in parts))


class _ModelTensors:
    """The weights of a transformers model, which is of no further use once they were let go."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))

    def get(self, name: str) -> Tensor:
        return self._parameters[name].data

    def free(self, prefix: str) -> None:
        for name, parameter in self._parameters.items():
            if name.startswith(prefix):
                parameter.data = parameter.data.new_empty(0)


def weights_of(model: Any) -> LlamaWeights:
    """Return the weights of a transformers causal LM. Raises ValueError for what the lean forwards do not compute."""
    shape = read_shape({**model.config.to_dict(), "model_type": model.config.model_type})
    source = _ModelTensors(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # transformers does not tie an output layer that was stored and is another.
    shape = replace(shape, tied=parameters.get(OUTPUT) is parameters.get(EMBEDDING))
    found = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shape.tied:
        found.pop(OUTPUT, None)
    if found != shape.tensors():
        raise ValueError(f"this {shape.family!r} model has other weights than its family's")
    embedding = source.get(EMBEDDING)
    span = torch.arange(shape.positions, device=embedding.device)
    # As the model itself computes them: every static scaling is in them.
    cos, sin = model.base_model.rotary_emb(embedding[:1], span[None])
    return LlamaWeights(shape, source, (cos[0], sin[0]), model.base_model.layers[0].mlp.act_fn)
