"""One forward of a transformers model for all rows of a step, each row with its own adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from adapterhub.errors import BaseError
from adapterhub.lora.linear import AdapterLinear, RowAdapters, linear_shapes
from adapterhub.lora.weights import check_effect, check_fits

from .attention import NAME, PackedBatch, packed_attention
from .heads import check_head, head_logits
from .kv_cache import CacheShape, KVCache
from .request import Adapter, Row
from .scheduler import Plan

# Families whose packed forward is held against the plain one by the tests; others are checked when they are loaded.
PROVEN = frozenset({"llama", "mistral", "qwen2", "gpt2", "bert", "roberta"})
COUNT_FROM_PAD = frozenset({"roberta", "xlm-roberta", "camembert"})


@dataclass(frozen=True)
class Outcome:
    """What a forward gave: `tokens` [generating rows, vocabulary], and for each classifying row its logits [labels]."""

    generating: tuple[Row, ...]
    tokens: Tensor | None
    heads: tuple[tuple[Row, Tensor], ...]


class Runner:
    """The general runner: any transformers decoder or encoder that lets its attention be replaced.

    Linear layers are wrapped when the first adapter that changes them arrives; a base without adapters runs untouched.
    """

    def __init__(self, model: Any, *, cache_tokens: int = 65536) -> None:
        AttentionInterface.register(NAME, packed_attention)
        self.model = model.eval().requires_grad_(False)
        self.backbone: nn.Module = model.base_model
        self.output: nn.Module | None = model.get_output_embeddings()
        self.vocabulary = int(model.config.vocab_size)
        self.hidden_size = int(model.config.hidden_size)
        self._pooler: nn.Module | None = getattr(self.backbone, "pooler", None)
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self._rows = RowAdapters()
        self._shapes = linear_shapes(self.backbone)
        self._wrapped: dict[str, AdapterLinear] = {}
        self._heads: dict[int, tuple[str, Mapping[str, Tensor]]] = {}
        decodes = self.output is not None
        shape = _cache_shape(model.config)
        self.cache = KVCache(shape, self.dtype, self.device, cache_tokens) if decodes else None
        self._first_position = _first_position(model.config)
        expected = None if model.config.model_type in PROVEN else self._plain_forward()
        model.set_attn_implementation(NAME)
        if expected is not None:
            self._check_packed(expected)

    def load(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter's matrices and head into a slot; raises CorruptAdapter where they do not fit the base."""
        check_effect(adapter.weights)
        check_fits(adapter.weights, self._shapes)
        if adapter.pooling is not None:
            check_head(adapter.weights.head, adapter.pooling, self.hidden_size, pooler=self._pooler is not None)
            head = {name: tensor.to(self.device) for name, tensor in adapter.weights.head.items()}
            self._heads[slot] = (adapter.pooling, head)
        for name, pair in adapter.weights.modules.items():
            self._wrap(name).put(slot, pair)

    def unload(self, slot: int) -> None:
        """Free what a slot holds; nothing happens where it holds nothing."""
        self._heads.pop(slot, None)
        for layer in self._wrapped.values():
            layer.drop(slot)

    def run(self, plan: Plan) -> Outcome:
        """Do the one forward of a step. The caller turns inference mode on."""
        generating = plan.decode + tuple(row for row in plan.start if row.request.sampling is not None)
        line = _Line(plan, self.cache)
        if self.cache is not None and generating:
            self.cache.reserve(len(generating), max(row.length for row in generating), len(plan.decode))
        self._rows.assign(line.slots, self.device)
        hidden = self._forward(line.tokens, line.positions, line.packed(self.device, causal=self.output is not None))
        tokens = None
        if generating:
            assert self.output is not None
            tokens = self.output(hidden[line.last_of(generating)])
        return Outcome(generating, tokens, tuple(self._classify(plan, line, hidden)))

    def _classify(self, plan: Plan, line: _Line, hidden: Tensor) -> list[tuple[Row, Tensor]]:
        by_slot: dict[int, list[Row]] = {}
        for row in plan.start:
            if row.request.sampling is None:
                by_slot.setdefault(row.slot, []).append(row)
        found = []
        for slot, rows in by_slot.items():
            pooling, head = self._heads[slot]
            index = line.last_of(rows) if pooling == "last" else line.first_of(rows)
            logits = head_logits(head, pooling, hidden[index], self._pooler)
            found += list(zip(rows, logits, strict=True))
        return found

    def _forward(self, tokens: list[int], positions: list[int], packed: PackedBatch) -> Tensor:
        """Return hidden states [tokens, dim] of a packed line."""
        output = self.backbone(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device) + self._first_position,
            packed=packed,
            **({"use_cache": False} if self.output is not None else {}),
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _wrap(self, name: str) -> AdapterLinear:
        if name not in self._wrapped:
            frozen = self.backbone.get_submodule(name)
            out_features, in_features = self._shapes[name]
            parent, _, attribute = name.rpartition(".")
            layer = AdapterLinear(frozen, in_features, out_features, self._rows)
            setattr(self.backbone.get_submodule(parent), attribute, layer)
            self._wrapped[name] = layer
        return self._wrapped[name]

    @torch.inference_mode()
    def _plain_forward(self) -> tuple[list[list[int]], Tensor]:
        """Return two short prompts and their last hidden states under the model's own attention."""
        prompts = [[i % self.vocabulary for i in range(3, 12)], [i % self.vocabulary for i in range(20, 25)]]
        states = [
            self.backbone(input_ids=torch.tensor([ids], device=self.device)).last_hidden_state[0] for ids in prompts
        ]
        return prompts, torch.cat(states)

    @torch.inference_mode()
    def _check_packed(self, expected: tuple[list[list[int]], Tensor]) -> None:
        """Raise BaseError where the packed forward of an unproven family differs from its plain one."""
        prompts, reference = expected
        ends = [len(prompts[0]), len(prompts[0]) + len(prompts[1])]
        packed = PackedBatch(
            torch.zeros(0, dtype=torch.int64, device=self.device),
            ((0, ends[0], None), (ends[0], ends[1], None)),
            None,
            self.output is not None,
        )
        kind = self.model.config.model_type
        positions = [i for ids in prompts for i in range(len(ids))]
        try:
            states = self._forward(prompts[0] + prompts[1], positions, packed)
        except (TypeError, AssertionError, AttributeError, KeyError, ValueError, RuntimeError) as error:
            raise BaseError(f"bases of type {kind!r} cannot be served: their attention cannot be replaced") from error
        if not torch.allclose(states, reference, rtol=1e-2, atol=1e-2 * float(reference.abs().max())):
            raise BaseError(f"bases of type {kind!r} cannot be served: the packed forward differs from the plain one")


class _Line:
    """The packed line of a plan: tokens, their positions and slots, and where each row's tokens lie."""

    def __init__(self, plan: Plan, cache: KVCache | None) -> None:
        self.tokens = [row.output[-1] for row in plan.decode]
        self.positions = [row.length - 1 for row in plan.decode]
        self.slots = [row.slot for row in plan.decode]
        self._lengths = list(self.positions)
        self._spans = {id(row): (i, i + 1) for i, row in enumerate(plan.decode)}
        self._cache = cache
        prompts: list[tuple[int, int, int | None]] = []
        next_row = len(plan.decode)
        for row in plan.start:
            start, size = len(self.tokens), len(row.request.tokens)
            keeps = row.request.sampling is not None
            prompts.append((start, start + size, next_row if keeps else None))
            next_row += keeps
            self._spans[id(row)] = (start, start + size)
            self.tokens += row.request.tokens
            self.positions += range(size)
            self.slots += [row.slot] * size
        self._prompts = tuple(prompts)

    def packed(self, device: torch.device, *, causal: bool) -> PackedBatch:
        """Return what the attention needs to know."""
        lengths = torch.tensor(self._lengths, dtype=torch.int64, device=device)
        return PackedBatch(lengths, self._prompts, self._cache, causal)

    def last_of(self, rows: tuple[Row, ...] | list[Row]) -> list[int]:
        """Return the index of each row's last token in the line."""
        return [self._spans[id(row)][1] - 1 for row in rows]

    def first_of(self, rows: tuple[Row, ...] | list[Row]) -> list[int]:
        """Return the index of each row's first token in the line."""
        return [self._spans[id(row)][0] for row in rows]


def _first_position(config: Any) -> int:
    """Return the position of a row's first token: RoBERTa and its kin count on from the pad token's id."""
    return int(config.pad_token_id) + 1 if config.model_type in COUNT_FROM_PAD else 0


def _cache_shape(config: Any) -> CacheShape:
    heads = config.num_attention_heads
    return CacheShape(
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
