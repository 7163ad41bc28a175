"""A transformers model as the engine uses it: one forward over a packed line, adapters beside its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adapterhub.errors import BaseError
from adapterhub.lora.linear import AdapterLinear, PlainFrozen, linear_shapes
from adapterhub.lora.ops import NO_SLOT
from adapterhub.lora.rows import RowAdapters, Segment
from adapterhub.lora.slabs import LoraSlabs, Stacked
from adapterhub.lora.weights import LoraPair

from .attention import NAME, packed_attention
from .batch import Batch
from .kv_cache import KVCache
from .plan import Plan, Span
from .request import Classify, Request, Row, Sampling

# Families whose packed forward is held against the plain one by the tests; others are checked when they are loaded.
PROVEN = frozenset({"llama", "mistral", "qwen2", "gpt2", "bert", "roberta"})
_POOLER = "pooler."
COUNT_FROM_PAD = frozenset({"roberta", "xlm-roberta", "camembert"})


class Network(Protocol):
    """What the runner asks of a base."""

    kind: str

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Name → (out, in) features of every layer that an adapter can change."""

    def stack(self, modules: Mapping[str, LoraPair]) -> Mapping[str, Stacked]:
        """Return an adapter's matrices, which fit `shapes`, in the form `put` takes; may run in any thread."""

    def put(self, slot: int, stacks: Mapping[str, Stacked]) -> None:
        """Write an adapter's matrices at a slot."""

    def drop(self, slot: int) -> None:
        """Free a slot."""

    def forward(self, batch: Batch) -> Tensor:
        """Return the last hidden states [tokens, dim] of the line."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [rows, vocabulary] for hidden states [rows, dim]."""


class TransformersNetwork:
    """The general network: any transformers decoder or encoder that lets its attention be replaced.

    It is the reference of the lean decoder. Linear layers are wrapped when the first adapter that changes them
    arrives; a base without adapters runs untouched.
    """

    kind = "transformers"

    def __init__(self, model: Any, slots: int, cache: KVCache | None = None) -> None:
        """`cache` is an empty one of the base's shape; an unproven decoder shows on it that it works with one."""
        # Not above: importing transformers' modules takes longer than answering, and the lean decoder needs none.
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, packed_attention)
        self._model = model
        self._backbone: nn.Module = model.base_model
        self._output: nn.Module | None = model.get_output_embeddings()
        parameter = next(model.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device
        self._rows, self._slots = RowAdapters(), slots
        self.shapes = linear_shapes(self._backbone)
        self._wrapped: dict[str, AdapterLinear] = {}
        config = model.config
        self._first_position = int(config.pad_token_id) + 1 if config.model_type in COUNT_FROM_PAD else 0
        # A pooler runs on other rows than the line's, one for each text; it is asked for by itself.
        self.pooler: nn.Module | None = getattr(self._backbone, "pooler", None)
        example = example_batch(example_prompts(int(config.vocab_size)), self._device, causal=self._output is not None)
        expected = None if config.model_type in PROVEN else plain_states(self._backbone, example)[-1]
        if self.pooler is not None:
            self._backbone.pooler = None
        model.set_attn_implementation(NAME)
        seen = self._rows_seen(example, expected)
        whole = {name for name, rows in seen.items() if rows == example.tokens.shape[0]}
        self.shapes = {n: s for n, s in self.shapes.items() if n in whole or n.startswith(_POOLER)}
        if expected is not None and cache is not None:
            self._check(partial(self._cached_states, example, cache), expected)

    def stack(self, modules: Mapping[str, LoraPair]) -> Mapping[str, Stacked]:
        """Return an adapter's matrices by layer; raises CorruptAdapter where scaling overflows the dtype."""
        return {
            name: self._slabs(name).stack({0: pair}, PlainFrozen.of(self._frozen(name)))
            for name, pair in modules.items()
        }

    def put(self, slot: int, stacks: Mapping[str, Stacked]) -> None:
        """Write an adapter's matrices at a slot, and wrap the layers it is the first to change."""
        self.drop(slot)
        for name, stacked in stacks.items():
            self._wrap(name).slabs.put(slot, stacked)

    def drop(self, slot: int) -> None:
        """Free a slot."""
        for layer in self._wrapped.values():
            layer.slabs.drop(slot)

    def forward(self, batch: Batch) -> Tensor:
        """Return the last hidden states [tokens, dim] of the line."""
        self._rows.assign(batch.segments(), self._device)
        output = self._backbone(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None] + self._first_position,
            packed=batch,
            **({"use_cache": False} if self._output is not None else {}),
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [rows, vocabulary] for hidden states [rows, dim]."""
        assert self._output is not None, "an encoder has no output layer"
        found: Tensor = self._output(hidden)
        return found

    def pool(self, slot: int, states: Tensor) -> Tensor:
        """Return what the base's pooler makes of `states` [rows, 1, dim], all of one slot: [rows, dim]."""
        assert self.pooler is not None
        self._rows.assign([Segment(0, states.shape[0], slot)], self._device)
        found: Tensor = self.pooler(states)
        return found

    def _slabs(self, name: str) -> LoraSlabs:
        out_features, in_features = self.shapes[name]
        return LoraSlabs(in_features, (out_features,), self._dtype)

    def _module(self, name: str) -> nn.Module:
        if self.pooler is not None and f"{name}.".startswith(_POOLER):
            return self.pooler.get_submodule(name.removeprefix("pooler").removeprefix("."))
        return self._backbone.get_submodule(name)

    def _frozen(self, name: str) -> nn.Module:
        layer = self._module(name)
        return layer.frozen if isinstance(layer, AdapterLinear) else layer

    def _wrap(self, name: str) -> AdapterLinear:
        if name not in self._wrapped:
            frozen = self._frozen(name)
            out_features, in_features = self.shapes[name]
            parent, _, attribute = name.rpartition(".")
            layer = AdapterLinear(frozen, in_features, out_features, self._rows, self._slots)
            setattr(self._module(parent), attribute, layer)
            self._wrapped[name] = layer
        return self._wrapped[name]

    def _rows_seen(self, example: Batch, expected: Tensor | None) -> dict[str, int]:
        """Return how many rows each linear layer gets of a line; raises BaseError where its states are others."""
        seen: dict[str, int] = {}

        def note(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name] = given[0].numel() // given[0].shape[-1]

        inside = [name for name in self.shapes if not name.startswith(_POOLER)]
        hooks = [self._module(name).register_forward_pre_hook(partial(note, name)) for name in inside]
        try:
            if expected is None:
                with torch.inference_mode():
                    self.forward(example)
            else:
                self._check(partial(self.forward, example), expected)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def _cached_states(self, example: Batch, cache: KVCache) -> Tensor:
        """Return the example's states as a running row gets them: a chunk, another chunk, and one token decoded."""
        texts = [span.tokens for span in example.spans]
        rows = [Row(Request(text[:-1], lambda _: None, Sampling(1)), NO_SLOT, cache.take(len(text))) for text in texts]
        try:
            parts: list[list[Tensor]] = [[] for _ in rows]
            for start, stop in ((0, 3), (3, None)):
                spans = [Span(row, row.request.tokens[start:stop], start, keeps=True, last=bool(start)) for row in rows]
                states = self.forward(Batch(Plan(prefill=tuple(spans)), cache, self._device, causal=True))
                for part, found in zip(parts, torch.split(states, [len(span.tokens) for span in spans]), strict=True):
                    part.append(found)
            for row, text in zip(rows, texts, strict=True):
                row.output.append(text[-1])
            states = self.forward(Batch(Plan(tuple(rows)), cache, self._device, causal=True))
            for part, found in zip(parts, states, strict=True):
                part.append(found[None])
            return torch.cat([found for part in parts for found in part])
        finally:
            for row in rows:
                if row.place is not None:
                    cache.release(row.place)

    @torch.inference_mode()
    def _check(self, forward: Callable[[], Tensor], expected: Tensor) -> None:
        """Raise BaseError where the packed forward of an unproven family differs from its plain one."""
        kind = self._model.config.model_type
        if getattr(self._model.config, "attention_chunk_size", None):
            raise BaseError(f"bases of type {kind!r} cannot be served: they attend in chunks")
        try:
            states = forward()
        except (TypeError, AssertionError, AttributeError, KeyError, ValueError, RuntimeError, IndexError) as error:
            raise BaseError(f"bases of type {kind!r} cannot be served: their attention cannot be replaced") from error
        if states.shape != expected.shape or not close_states(states, expected):
            raise BaseError(f"bases of type {kind!r} cannot be served: the packed forward differs from the plain one")


def example_prompts(vocabulary: int) -> list[list[int]]:
    """Return two short prompts to hold one forward against another with."""
    return [[i % vocabulary for i in range(3, 12)], [i % vocabulary for i in range(20, 25)]]


def example_batch(prompts: Sequence[Sequence[int]], device: torch.device, *, causal: bool) -> Batch:
    """Return the batch in which the prompts run side by side on the bare base, and no cache is needed."""
    rows = [Row(Request(tuple(ids), lambda _: None, Classify()), slot=-1) for ids in prompts]
    spans = tuple(Span(row, row.request.tokens, past=0, keeps=False, last=True) for row in rows)
    return Batch(Plan(prefill=spans), None, device, causal=causal)


@torch.inference_mode()
def plain_states(backbone: nn.Module, example: Batch) -> tuple[Tensor, ...]:
    """Return hidden states [tokens, dim] of the example's line under the model's own attention.

    The first are the embeddings, the next those after each layer but the last; the last are the final ones.
    """
    outputs = [
        backbone(input_ids=torch.tensor([span.tokens], device=example.device), output_hidden_states=True)
        for span in example.spans
    ]
    return tuple(torch.cat(states, dim=1)[0] for states in zip(*(o.hidden_states for o in outputs), strict=True))


def close_states(states: Tensor, expected: Tensor) -> bool:
    """Return whether two forwards agree but for rounding.

    In 32 bits and more that is a relative error of 1e-3 (Frobenius norm). In 16 bits rounding grows from layer to layer
    until only the largest states say anything.
    """
    wide = torch.promote_types(expected.dtype, torch.float32)
    error, size = (states.to(wide) - expected.to(wide)), expected.to(wide)
    if torch.finfo(expected.dtype).bits > 16:
        return bool(torch.linalg.norm(error) <= 1e-3 * torch.linalg.norm(size))
    return bool(error.abs().max() <= 0.05 * size.abs().max())
