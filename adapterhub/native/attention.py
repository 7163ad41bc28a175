"""Causal attention over a packed line of texts, forward and backward, by the kernels where there are any."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import suited
from .layout import Layout
from .library import native
from .plain_attention import AttentionShape, plain_attention_backward, plain_attention_forward

__all__ = ["AttentionShape", "attention_backward", "attention_forward"]


def attention_forward(
    qkv: Tensor, layout: Layout, cos: Tensor, sin: Tensor, shape: AttentionShape
) -> tuple[Tensor, Tensor]:
    """Return the attention's output [tokens, heads * dim] and what the backward pass wants, lse [tokens, heads].

    `qkv` [tokens, (heads + 2 key/value heads) * dim] holds queries, keys and values side by side, before they are
    turned by their positions (RoPE, Su et al. 2021) with the tables `cos` and `sin` [positions, dim], float32, as
    transformers has them (both halves alike, nothing negated). Query heads in equal groups share a key/value head.
    Nothing but qkv, out and lse is needed for the backward pass: probabilities are computed again there. `out` is of
    qkv's dtype, lse of float32 (float64 where qkv is).

    No autograd where the kernels run. Raises ValueError where shapes do not fit.
    """
    _check(qkv, layout, cos, sin, shape)
    kernels = native()
    if kernels is None or not suited(qkv) or not _floats(cos, sin):
        return plain_attention_forward(qkv, layout, cos, sin, shape)
    out, lse = qkv.new_empty(layout.tokens, shape.out_features), torch.empty(layout.tokens, shape.heads)
    kernels.attention_forward(qkv, layout.forest, cos, sin, shape, out, lse)
    return out, lse


def attention_backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Layout,
    cos: Tensor,
    sin: Tensor,
    shape: AttentionShape,
) -> Tensor:
    """Return the gradient with respect to `qkv`, from that of the output.

    What a shared beginning gets from all texts that go on from it is summed, in an order that depends on the layout
    alone: equal input gives equal bits with any number of threads. `out` and `lse` are what `attention_forward` gave.
    """
    _check(qkv, layout, cos, sin, shape)
    kernels = native()
    if kernels is None or not suited(qkv, dout, out) or not _floats(cos, sin, lse):
        return plain_attention_backward(dout, qkv, out, lse, layout, cos, sin, shape)
    dqkv = torch.empty_like(qkv)
    kernels.attention_backward(dout, qkv, out, lse, layout.forest, cos, sin, shape, dqkv)
    return dqkv


def _floats(*tensors: Tensor) -> bool:
    return tensors[0].dtype == torch.float32 and suited(*tensors)


def _check(qkv: Tensor, layout: Layout, cos: Tensor, sin: Tensor, shape: AttentionShape) -> None:
    if qkv.shape != (layout.tokens, shape.features):
        raise ValueError(f"qkv is {list(qkv.shape)}, expected {[layout.tokens, shape.features]}")
    if shape.heads % shape.kv_heads or shape.dim % 2:
        raise ValueError(f"{shape} has uneven groups of heads, or heads that cannot be halved")
    for table in (cos, sin):
        if table.shape[0] < layout.longest or table.shape[1:] != (shape.dim,):
            raise ValueError(
                f"angles are {list(table.shape)}, expected {[layout.longest, shape.dim]} or more positions"
            )
