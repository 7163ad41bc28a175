"""The lean network of the Llama family: frozen weights packed once, few and large operations a layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterhub.base.llama import STACKS, LayerWeights, LlamaWeights, NormWeights, StackWeights
from adapterhub.errors import BaseError
from adapterhub.lora.rows import RowAdapters
from adapterhub.lora.slabs import LoraSlabs, Stacked
from adapterhub.lora.weights import LoraPair
from adapterhub.native.gated import swiglu
from adapterhub.native.norm import add_rms_norm, rms_norm

from .attention import attend
from .batch import Batch
from .frozen import FrozenLinear
from .network import close_states, example_batch, example_prompts, plain_states

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Norm:
    """Root mean square normalisation (Zhang and Sennrich 2019), as transformers computes it."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, norm: NormWeights) -> _Norm:
        return cls(norm.weight, norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            # transformers normalises in float32 whatever the model's dtype; float64 serves comparisons with it.
            narrow = x.to(torch.float32)
            return self.weight * (narrow * torch.rsqrt(narrow.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return rms_norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps).view(x.shape)

    def after(self, x: Tensor, delta: Tensor) -> Tensor:
        """Add `delta` to `x`, in place, and return the sum normalised."""
        return self(x.add_(delta)) if x.dtype == torch.float64 else add_rms_norm(x, delta, self.weight, self.eps)


class _Stack:
    """Layers that read the same input, their frozen weights stacked, with the resident adapters beside them."""

    def __init__(self, weights: StackWeights, rows: RowAdapters, slots: int) -> None:
        weight = weights.weight
        self.frozen = FrozenLinear(weight, weights.bias)
        self.slabs = LoraSlabs(weight.shape[1], weights.outs, weight.dtype, weight.device, slots)
        self._rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        """Return [rows, sum of out] for `x` [rows, in]."""
        y = self.frozen(x)
        if self._rows.active:
            self.slabs.add(y, x, self._rows, self.frozen.bias)
        return y


class _Layer:
    """One transformer layer."""

    def __init__(self, index: int, weights: LayerWeights, rows: RowAdapters, slots: int) -> None:
        self._index = index
        self.stacks = tuple(_Stack(stack, rows, slots) for stack in weights.stacks)
        self._before, self._between = _Norm.of(weights.before), _Norm.of(weights.between)
        self._q_norm, self._k_norm = (
            None if norm is None else _Norm.of(norm) for norm in (weights.q_norm, weights.k_norm)
        )
        self._gated = swiglu if weights.silu else _gated(weights.act)
        self._dim = weights.dim
        self._heads, self._kv_heads = weights.heads, weights.kv_heads
        self._scale, self._window = weights.scale, weights.window

    def __call__(self, x: Tensor, batch: Batch, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Return the residual stream [tokens, hidden] after this layer; `x` may be written over."""
        qkv, out, gate_up, down = self.stacks
        q, k, v = self._split(qkv(self._before(x)), angles)
        attended = attend(batch, self._index, q, k, v, self._scale, self._window)
        return x.add_(down(self._gated(gate_up(self._between.after(x, out(attended))))))

    def _split(self, qkv: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [tokens, heads, dim], the first two turned by their positions."""
        heads = qkv.view(qkv.shape[0], -1, self._dim)
        both = heads[:, : self._heads + self._kv_heads]
        if self._q_norm is not None and self._k_norm is not None:
            both = torch.cat([self._q_norm(both[:, : self._heads]), self._k_norm(both[:, self._heads :])], dim=1)
        both = _rotated(both, angles)
        return both[:, : self._heads], both[:, self._heads :], heads[:, self._heads + self._kv_heads :]


@dataclass(frozen=True)
class Plain:
    """What a transformers model itself says of an example: the states of its line, as `plain_states` returns them."""

    example: Batch
    states: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: Any) -> Plain:
        """Ask a model."""
        device = next(model.parameters()).device
        example = example_batch(example_prompts(int(model.config.vocab_size)), device, causal=True)
        return cls(example, plain_states(model.base_model, example))


class LeanDecoder:
    """Llama, Mistral, Qwen2, Qwen3 and what is built like them (SmolLM).

    The weights are moved into the packed form and let go layer by layer. Where `plain` is of the model that they come
    from, ValueError is raised for a model whose first layer computes something else, and its weights are untouched.
    """

    kind = "lean"

    def __init__(self, weights: LlamaWeights, slots: int, plain: Plain | None = None) -> None:
        shape = weights.shape
        self.shapes = shape.linear()
        self._rows = RowAdapters()
        self._embedding, output = weights.ends()
        cos, sin = weights.angles
        half = cos.shape[-1] // 2
        self._cos, self._sin = cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
        self._norm, self._depth = _Norm.of(weights.norm), shape.layers
        self._layers: list[_Layer] = []
        for index in range(shape.layers):
            self._layers.append(_Layer(index, weights.layer(index), self._rows, slots))
            if index == 0 and plain is not None and not self._agrees(plain.example, plain.states[1]):
                raise ValueError(f"the first layer of this {shape.family!r} computes something else")
            weights.free(index)
        self._stacks = {
            (f"layers.{index}.{names[0]}", tuple(f"layers.{index}.{name}" for name in names)): stack
            for index, layer in enumerate(self._layers)
            for names, stack in zip(STACKS, layer.stacks, strict=True)
        }
        self._output = FrozenLinear(output)
        weights.free_output()
        # In 16 bits rounding alone makes forwards of many layers differ; there the first layer speaks for all.
        if plain is None or torch.finfo(self._embedding.dtype).bits <= 16:
            return
        if not self._agrees(plain.example, plain.states[-1]):
            raise BaseError(f"the lean forward of this {shape.family!r} base differs from the plain one")

    def stack(self, modules: Mapping[str, LoraPair]) -> Mapping[str, Stacked]:
        """Return an adapter's matrices by the first layer of each stack; raises CorruptAdapter as LoraSlabs does."""
        found = {}
        for (first, names), stack in self._stacks.items():
            pairs = {i: modules[name] for i, name in enumerate(names) if name in modules}
            if pairs:
                found[first] = stack.slabs.stack(pairs, stack.frozen)
        return found

    def put(self, slot: int, stacks: Mapping[str, Stacked]) -> None:
        """Write an adapter's matrices at a slot."""
        for (first, _), stack in self._stacks.items():
            if first in stacks:
                stack.slabs.put(slot, stacks[first])
            else:
                stack.slabs.drop(slot)

    def drop(self, slot: int) -> None:
        """Free a slot."""
        for stack in self._stacks.values():
            stack.slabs.drop(slot)

    def forward(self, batch: Batch) -> Tensor:
        """Return the last hidden states [tokens, dim] of the line."""
        self._rows.assign(batch.segments(), self._embedding.device)
        return self._norm(self._stream(batch))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [rows, vocabulary] for hidden states [rows, dim]."""
        return self._output(hidden)

    def _stream(self, batch: Batch) -> Tensor:
        """Return the residual stream [tokens, hidden] after the layers there are."""
        x = self._embedding.index_select(0, batch.tokens)
        angles = (
            self._cos.index_select(0, batch.positions)[:, None],
            self._sin.index_select(0, batch.positions)[:, None],
        )
        for layer in self._layers:
            x = layer(x, batch, angles)
        return x

    @torch.inference_mode()
    def _agrees(self, example: Batch, expected: Tensor) -> bool:
        """Return whether what is built so far gives the states that the model itself gave."""
        whole = len(self._layers) == self._depth
        return close_states(self.forward(example) if whole else self._stream(example), expected)


def _gated(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what makes act(gate) * up [rows, width] of gate and up side by side."""

    def gated(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return act(gate).mul_(up)

    return gated


def _rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys [tokens, heads, dim] turned by their positions (RoPE, Su et al. 2021).

    `angles` are cosine and sine [tokens, 1, dim], the sine's first half negated, so that swapping halves is all that is
    left of the rotation.
    """
    cos, sin = angles
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
