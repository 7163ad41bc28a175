"""The Llama family under training: a packed line of many tasks' rows, forward and backward over frozen weights.

One product with each stack of frozen weights serves all rows, whatever adapter they use. The base has no gradients, so
backward is products with the same weights, and autograd would only get in the way; `general.py` is the same by
autograd, and tests hold the two together. Nothing is computed twice for rows that begin alike, no backward goes below
the lowest layer that learns, and of the last layer only the states that are read are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adapterhub.base.llama import LayerWeights, LlamaWeights, NormWeights
from adapterhub.lora.learning import StackPairs
from adapterhub.native.attention import AttentionShape, attention_backward, attention_forward
from adapterhub.native.gated import swiglu, swiglu_backward
from adapterhub.native.norm import rms_norm, rms_norm_backward

from .adapter import LearningAdapter
from .frozen import FrozenStack
from .line import Line
from .workspace import Workspace

QKV, OUT, GATE_UP, DOWN = range(4)


@dataclass(frozen=True)
class Rows:
    """The rows [start, stop) of a layer's input that use one adapter (None: the bare base)."""

    start: int
    stop: int
    adapter: LearningAdapter | None


@dataclass
class _Update:
    """What the backward of one adapter's update on one stack needs: scaled z^T, and the kept part of the input."""

    rows: Rows
    pairs: StackPairs
    zt: Tensor
    kept: Tensor | None
    dzt: Tensor | None = None

    def dropped(self, x: Tensor) -> Tensor:
        """Return the rows' part of `x` as the update saw it."""
        part = x[self.rows.start : self.rows.stop]
        return part if self.kept is None else part * self.kept


@dataclass
class _LayerKept:
    """What the backward of a layer needs; `mid` and `gate_up` are of its second half, which may have fewer rows."""

    x: Tensor
    qkv: Tensor
    normed_qkv: Tensor
    attended: Tensor
    lse: Tensor
    mid: Tensor
    gate_up: Tensor
    updates: list[list[_Update]]


@dataclass
class _Pass:
    """One forward that backward has not yet been asked for."""

    line: Line
    first: int
    rows: Sequence[Rows]
    last_rows: Sequence[Rows]
    last: Tensor
    layers: dict[int, _LayerKept] = field(default_factory=dict)


class PackedDecoder:
    """A base of the Llama family with SiLU gates; raises ValueError for other gates.

    The weights are taken and let go layer by layer; the output layer is kept as it is.
    """

    def __init__(self, weights: LlamaWeights) -> None:
        if not weights.shape.silu:
            raise ValueError(f"gates of {weights.shape.act!r} have no packed backward")
        self.embedding, self.output = weights.ends()
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self._cos, self._sin = weights.angles
        self._layers: list[LayerWeights] = []
        self._stacks: list[tuple[FrozenStack, ...]] = []
        for index in range(weights.shape.layers):
            layer = weights.layer(index)
            self._stacks.append(tuple(map(FrozenStack, layer.stacks)))
            self._layers.append(replace(layer, stacks=()))
            weights.free(index)
        self._norm: NormWeights = weights.norm
        self._work = Workspace(self.dtype, self.device)
        self._pass: _Pass | None = None

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def hidden(self) -> int:
        """Width of the states."""
        return int(self.embedding.shape[1])

    def stacks(self, layer: int) -> tuple[FrozenStack, ...]:
        """Return a layer's frozen stacks, in the order of STACKS."""
        return self._stacks[layer]

    @torch.no_grad()
    def trunk(self, line: Line, depth: int) -> Tensor:
        """Return the residual stream [tokens, hidden] of the bare base before layer `depth`."""
        x = self._embedded(line)
        everything = [Rows(0, len(x), None)]
        for index in range(depth):
            x = self._forward(index, x, line, everything, None, everything, keep=False)[0]
        return x.clone()

    @torch.no_grad()
    def forward(
        self,
        line: Line,
        adapters: Sequence[LearningAdapter | None],
        *,
        learn: bool,
        first: int = 0,
        trunk: Tensor | None = None,
    ) -> Tensor:
        """Return the last states [states, hidden], normed, that `line` needs, each span under its adapter.

        With `learn` dropout is drawn and everything is kept that `backward` needs. `trunk` is the residual stream
        before layer `first`, which leaves out the layers below.
        """
        rows = [Rows(s.start, s.stop, adapter) for s, adapter in zip(line.spans, adapters, strict=True)]
        last_rows = [Rows(s.low, s.high, adapter) for s, adapter in zip(line.spans, adapters, strict=True)]
        x = self._embedded(line) if trunk is None else trunk
        kept: dict[int, _LayerKept] = {}
        for index in range(0 if trunk is None else first, self.depth):
            needed = line.needed if index == self.depth - 1 else None
            learns = learn and index >= first
            x, layer = self._forward(index, x, line, rows, needed, last_rows, keep=learns)
            if layer is not None:
                kept[index] = layer
        self._pass = _Pass(line, first, rows, last_rows, x, kept) if learn else None
        return rms_norm(x, self._norm.weight, self._norm.eps)

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Add to the gradients of the last forward's adapters, for the `gradient` [states, hidden] of its states."""
        done, self._pass = self._pass, None
        assert done is not None, "forward with learn=True comes first"
        dh = torch.zeros_like(done.last)
        rms_norm_backward(gradient.to(self.dtype).contiguous(), done.last, self._norm.weight, self._norm.eps, dh)
        for index in reversed(range(done.first, self.depth)):
            dh = self._backward(index, dh, done)

    def _embedded(self, line: Line) -> Tensor:
        out = self._work.take("embedded", len(line.tokens), self.hidden)
        return torch.index_select(self.embedding, 0, line.tokens, out=out)

    def _forward(
        self,
        index: int,
        x: Tensor,
        line: Line,
        rows: Sequence[Rows],
        needed: Tensor | None,
        last_rows: Sequence[Rows],
        *,
        keep: bool,
    ) -> tuple[Tensor, _LayerKept | None]:
        """Run a layer; where `needed` is given, its second half on those tokens alone, whose rows are `last_rows`."""
        weights = self._layers[index]
        place = index if keep else index % 2 - 2  # two sets of buffers in turn where nothing is kept
        updates: list[list[_Update]] = [[], [], [], []]

        def linear(stack: int, given: Tensor, into: str, span: Sequence[Rows], residual: Tensor | None) -> Tensor:
            frozen = self._stacks[index][stack]
            y = frozen.forward(given, self._work.take((place, into), len(given), frozen.out_features), residual)
            for each in span:
                updates[stack] += _add(index, stack, y, given, each, learn=keep)
            return y

        qkv = linear(QKV, rms_norm(x, weights.before.weight, weights.before.eps), "qkv", rows, None)
        normed = _head_norms(weights, qkv)
        attended, lse = attention_forward(normed, line.layout, self._cos, self._sin, _shape(weights))
        part, stream = attended, x
        if needed is not None and len(needed) < len(x):
            part, stream, rows = attended.index_select(0, needed), x.index_select(0, needed), last_rows
        mid = linear(OUT, part, "mid", rows, stream)
        gate_up = linear(GATE_UP, rms_norm(mid, weights.between.weight, weights.between.eps), "gate_up", rows, None)
        y = linear(DOWN, swiglu(gate_up), "out", rows, mid)
        return y, _LayerKept(x, qkv, normed, attended, lse, mid, gate_up, updates) if keep else None

    def _backward(self, index: int, dh: Tensor, done: _Pass) -> Tensor:
        """Return the gradient before a layer for `dh` after it, which is overwritten."""
        kept = done.layers.pop(index)
        self._backward_gated(index, dh, kept)
        dattended, dh = self._backward_out(index, dh, kept, done.line)
        weights = self._layers[index]
        angles = (self._cos, self._sin)
        dnormed = attention_backward(
            dattended, kept.normed_qkv, kept.attended, kept.lse, done.line.layout, *angles, _shape(weights)
        )
        dqkv = _head_norms_backward(weights, dnormed, kept.qkv)
        norm = weights.before
        if index == done.first:
            # What lies below does not learn: no gradient of the input is needed.
            for update in kept.updates[QKV]:
                _back(update, dqkv, None)
        else:
            dx = self._through(index, QKV, dqkv, kept, "dnorm")
        if kept.updates[QKV]:
            _learn(kept.updates[QKV], rms_norm(kept.x, norm.weight, norm.eps))
        if index != done.first:
            rms_norm_backward(dx, kept.x, norm.weight, norm.eps, dh)
        return dh

    def _backward_gated(self, index: int, dh: Tensor, kept: _LayerKept) -> None:
        """Take the second half of a layer back; `dh` becomes the gradient before it."""
        act = self._through(index, DOWN, dh, kept, "act")
        swiglu_backward(kept.gate_up, act)
        _learn(kept.updates[DOWN], act)
        dmid = self._through(index, GATE_UP, kept.gate_up, kept, "dnorm")
        norm = self._layers[index].between
        if kept.updates[GATE_UP]:
            _learn(kept.updates[GATE_UP], rms_norm(kept.mid, norm.weight, norm.eps))
        rms_norm_backward(dmid, kept.mid, norm.weight, norm.eps, dh)

    def _backward_out(self, index: int, dh: Tensor, kept: _LayerKept, line: Line) -> tuple[Tensor, Tensor]:
        """Return the gradients of what attention gave and of the residual stream, for all tokens of the line."""
        dattended = self._through(index, OUT, dh, kept, "dattended")
        if len(kept.mid) == len(kept.x):
            _learn(kept.updates[OUT], kept.attended)
            return dattended, dh
        _learn(kept.updates[OUT], kept.attended.index_select(0, line.needed))
        whole = (torch.zeros_like(kept.attended), torch.zeros_like(kept.x))
        return whole[0].index_copy_(0, line.needed, dattended), whole[1].index_copy_(0, line.needed, dh)

    def _through(self, index: int, stack: int, dy: Tensor, kept: _LayerKept, name: str) -> Tensor:
        """Return the gradient of a stack's input, that of its updates' B noted."""
        frozen = self._stacks[index][stack]
        dx = frozen.backward(dy, self._work.take(name, len(dy), frozen.in_features))
        for update in kept.updates[stack]:
            _back(update, dy, dx)
        return dx


def _add(index: int, stack: int, y: Tensor, x: Tensor, rows: Rows, *, learn: bool) -> list[_Update]:
    """Add an adapter's update to its rows of `y`, and return what its backward needs."""
    adapter = rows.adapter
    if adapter is None or rows.start == rows.stop:
        return []
    part, into = x[rows.start : rows.stop], y[rows.start : rows.stop]
    found = []
    for pairs in adapter.pairs(index, stack):
        kept = None
        if learn and adapter.dropout > 0 and pairs.learns:
            kept = torch.empty_like(part).bernoulli_(1 - adapter.dropout, generator=adapter.generator)
            kept.div_(1 - adapter.dropout)
        zt = pairs.add(into, part if kept is None else part * kept)
        found.append(_Update(rows, pairs, zt, kept))
    return found


def _back(update: _Update, dy: Tensor, dx: Tensor | None) -> None:
    """Take an update's part of the backward, but for the gradient of A, whose input comes later."""
    rows = update.rows
    update.dzt = update.pairs.back(dy[rows.start : rows.stop], update.zt)
    if dx is None:
        return
    part = dx[rows.start : rows.stop]
    if update.kept is None:
        update.pairs.input_gradient(part, update.dzt)
    else:
        part.addcmul_(torch.mm(update.dzt.T, update.pairs.a), update.kept)


def _learn(updates: Sequence[_Update], x: Tensor) -> None:
    """Add to the gradients of A, for the input `x` of their stack."""
    for update in updates:
        assert update.dzt is not None
        update.pairs.add_gradient_of_a(update.dzt, update.dropped(x))


def _shape(weights: LayerWeights) -> AttentionShape:
    return AttentionShape(weights.heads, weights.kv_heads, weights.dim, weights.scale, weights.window)


def _head_norms(weights: LayerWeights, qkv: Tensor) -> Tensor:
    """Return `qkv` with each head of queries and keys normed, where the family does that; else `qkv` itself."""
    if weights.q_norm is None or weights.k_norm is None:
        return qkv
    normed = qkv.clone()
    for norm, columns in _head_columns(weights):
        heads = qkv[:, columns].reshape(-1, weights.dim)
        normed[:, columns] = rms_norm(heads, norm.weight, norm.eps).view(len(qkv), -1)
    return normed


def _head_norms_backward(weights: LayerWeights, dnormed: Tensor, qkv: Tensor) -> Tensor:
    if weights.q_norm is None or weights.k_norm is None:
        return dnormed
    for norm, columns in _head_columns(weights):
        heads = qkv[:, columns].reshape(-1, weights.dim)
        into = torch.zeros_like(heads)
        rms_norm_backward(dnormed[:, columns].reshape(-1, weights.dim), heads, norm.weight, norm.eps, into)
        dnormed[:, columns] = into.view(len(qkv), -1)
    return dnormed


def _head_columns(weights: LayerWeights) -> list[tuple[NormWeights, slice]]:
    assert weights.q_norm is not None
    assert weights.k_norm is not None
    queries = weights.heads * weights.dim
    keys = queries + weights.kv_heads * weights.dim
    return [(weights.q_norm, slice(0, queries)), (weights.k_norm, slice(queries, keys))]
