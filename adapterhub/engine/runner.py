"""One forward for all rows of a step, each row with its own adapter, and what each of them asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapterhub.base.llama import LlamaWeights, weights_of
from adapterhub.errors import CorruptAdapter
from adapterhub.lora.ops import NO_SLOT
from adapterhub.lora.slabs import Stacked
from adapterhub.lora.weights import LoraWeights, check_effect, check_fits

from .batch import Batch, Stretch
from .decoder import LeanDecoder, Plain
from .heads import check_head, head_logits
from .kv_cache import CacheShape, KVCache
from .network import Network, TransformersNetwork
from .plan import Plan, Span
from .request import Adapter, Classify, Embed, Row, Sampling

log = logging.getLogger(__name__)

# Rows of logits made at once for continuations: [rows, vocabulary] is large.
_READS = 256


@dataclass(frozen=True)
class HostAdapter:
    """An adapter in host memory, checked against the base and ready to be copied into a slot."""

    stacks: Mapping[str, Stacked]
    head: Mapping[str, Tensor]
    pooling: str | None

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return sum(s.bytes for s in self.stacks.values()) + sum(
            t.numel() * t.element_size() for t in self.head.values()
        )


@dataclass(frozen=True)
class Outcome:
    """What a forward gave.

    `logits` [generating rows, vocabulary]; `heads` each classifying row's logits [labels]; `states` each embedding
    row's pooled state [dim], for "mean" the sum over the span; `scores` log-probabilities [reads of the span].
    """

    generating: tuple[Row, ...]
    logits: Tensor | None
    heads: tuple[tuple[Row, Tensor], ...]
    states: tuple[tuple[Row, Tensor], ...]
    scores: tuple[tuple[Span, Tensor], ...]


class Runner:
    """Runs plans on a base: the lean decoder where the base is of its families, else the general network.

    `base` is the weights of one of those families, or a frozen transformers model. `reference` asks for the general
    network in any case, which a model is needed for; it is what the lean one is held against.
    """

    def __init__(
        self, base: LlamaWeights | Any, *, cache_tokens: int = 65536, resident: int = 32, reference: bool = False
    ) -> None:
        traits = _traits_of_weights(base) if isinstance(base, LlamaWeights) else _traits_of_model(base)
        self.vocabulary, self.hidden_size, self.causal = traits.vocabulary, traits.hidden_size, traits.causal
        self.dtype, self.device = traits.dtype, traits.device
        self.cache = KVCache(traits.cache, self.dtype, self.device, cache_tokens) if self.causal else None
        # Off the CPU memory that is set aside is taken, so slabs grow there instead.
        slots = resident if self.device.type == "cpu" else 1
        self._network = _network(base, slots, self.cache, lean=self.causal and not reference)
        self.identity = f"{self._network.kind}/{str(self.dtype).removeprefix('torch.')}"
        self._heads: dict[int, tuple[str, Mapping[str, Tensor]]] = {}

    def prepare(self, adapter: Adapter, weights: LoraWeights) -> HostAdapter:
        """Check that an adapter fits the base and bring it into the form `load` copies from; may run in any thread.

        Raises CorruptAdapter where it does not fit or changes nothing.
        """
        check_effect(weights)
        check_fits(weights, self._network.shapes)
        if adapter.pooling is not None:
            check_head(weights.head, adapter.pooling, self.hidden_size, pooler=self._pooler(NO_SLOT) is not None)
        head = {name: tensor.to(self.device) for name, tensor in weights.head.items()}
        stacks = self._network.stack(weights.modules)
        if not head and not any(stacked.changes for stacked in stacks.values()):
            raise CorruptAdapter(f"adapter {adapter.digest} changes nothing on this base; was it trained?")
        return HostAdapter(stacks, head, adapter.pooling)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        """Copy an adapter's matrices and head into a slot."""
        if adapter.pooling is not None:
            self._heads[slot] = (adapter.pooling, adapter.head)
        self._network.put(slot, adapter.stacks)

    def unload(self, slot: int) -> None:
        """Free what a slot holds; nothing happens where it holds nothing."""
        self._heads.pop(slot, None)
        self._network.drop(slot)

    def run(self, plan: Plan) -> Outcome:
        """Do the one forward of a step. The caller turns inference mode on."""
        batch = Batch(plan, self.cache, self.device, causal=self.causal)
        hidden = self._network.forward(batch)
        spans = list(zip(batch.spans, batch.stretches, strict=True))
        starting = [(s.row, at.stop - 1) for s, at in spans if s.last and isinstance(s.row.request.ask, Sampling)]
        generating = (*batch.decode, *(row for row, _ in starting))
        logits = None
        if generating:
            wanted = [*range(len(batch.decode)), *(index for _, index in starting)]
            logits = self._network.logits(hidden if len(wanted) == hidden.shape[0] else hidden[wanted])
        return Outcome(
            generating,
            logits,
            tuple(self._classify(spans, hidden)),
            tuple((s.row, state) for s, at in spans if (state := _pooled(s, at, hidden)) is not None),
            tuple((s, self._read(s, at, hidden)) for s, at in spans if s.reads),
        )

    def _classify(self, spans: list[tuple[Span, Stretch]], hidden: Tensor) -> list[tuple[Row, Tensor]]:
        by_slot: dict[int, list[tuple[Span, Stretch]]] = {}
        for span, stretch in spans:
            if span.last and isinstance(span.row.request.ask, Classify):
                by_slot.setdefault(span.row.slot, []).append((span, stretch))
        found = []
        for slot, rows in by_slot.items():
            pooling, head = self._heads[slot]
            index = [at.stop - 1 if pooling == "last" else at.start for _, at in rows]
            logits = head_logits(head, pooling, hidden[index], self._pooler(slot))
            found += [(span.row, each) for (span, _), each in zip(rows, logits, strict=True)]
        return found

    def _pooler(self, slot: int) -> Callable[[Tensor], Tensor] | None:
        network = self._network
        if isinstance(network, TransformersNetwork) and network.pooler is not None:
            return partial(network.pool, slot)
        return None

    def _read(self, span: Span, stretch: Stretch, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [reads] that a span asks for."""
        offsets = sorted({offset for offset, _ in span.reads})
        at = {offset: i for i, offset in enumerate(offsets)}
        found = torch.empty(len(span.reads), dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
        for low in range(0, len(offsets), _READS):
            some = offsets[low : low + _READS]
            logits = self._network.logits(hidden[[stretch.start + offset for offset in some]])
            scores = logits.to(found.dtype).log_softmax(dim=-1)
            reads = [(i, at[o] - low, token) for i, (o, token) in enumerate(span.reads) if low <= at[o] < low + _READS]
            into, rows, tokens = (list(each) for each in zip(*reads, strict=True))
            found[into] = scores[rows, tokens]
        return found


def _pooled(span: Span, stretch: Stretch, hidden: Tensor) -> Tensor | None:
    """Return what a span adds to its row's embedding: the sum of its states, or the one that counts; None: nothing."""
    ask = span.row.request.ask
    if not isinstance(ask, Embed):
        return None
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if ask.pooling == "mean":
        return hidden[stretch.start : stretch.stop].to(wide).sum(dim=0)
    if ask.pooling == "last":
        return hidden[stretch.stop - 1].to(wide) if span.last else None
    return hidden[stretch.start].to(wide) if span.past == 0 else None


def _network(base: LlamaWeights | Any, slots: int, cache: KVCache | None, *, lean: bool) -> Network:
    if isinstance(base, LlamaWeights):
        assert lean, "the general network needs a transformers model"
        return LeanDecoder(base, slots)
    model = base.eval().requires_grad_(False)
    if lean:
        try:
            return LeanDecoder(weights_of(model), slots, Plain.of(model))
        except ValueError as reason:
            log.info("the general network is used: %s", reason)
    return TransformersNetwork(model, slots, cache)


@dataclass(frozen=True)
class _Traits:
    """What the runner knows of a base, whatever it is given as."""

    vocabulary: int
    hidden_size: int
    causal: bool
    dtype: torch.dtype
    device: torch.device
    cache: CacheShape


def _traits_of_weights(weights: LlamaWeights) -> _Traits:
    shape, (cos, _) = weights.shape, weights.angles
    cache = CacheShape(layers=shape.layers, heads=shape.kv_heads, head_dim=shape.dim)
    return _Traits(shape.vocabulary, shape.hidden, True, cos.dtype, cos.device, cache)


def _traits_of_model(model: Any) -> _Traits:
    config, parameter = model.config, next(model.parameters())
    heads = config.num_attention_heads
    cache = CacheShape(
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    causal = model.get_output_embeddings() is not None
    return _Traits(int(config.vocab_size), int(config.hidden_size), causal, parameter.dtype, parameter.device, cache)
