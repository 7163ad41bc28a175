"""Log-probabilities of given tokens without logits in memory: a vocabulary is the widest thing a small base has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits of so many states at once: with 50,000 tokens 25 MB in float32, which a processor's cache nearly holds.
CHUNK = 128


def token_logprobs(states: Tensor, output: Tensor, tokens: Tensor) -> Tensor:
    """Return the natural logarithm of each token's probability after its state: float32 or wider [reads].

    `states` are [reads, hidden], `output` the frozen output layer [vocabulary, hidden], `tokens` int64 [reads].
    """
    found: Tensor = _TokenLogprobs.apply(states, output, tokens)  # type: ignore[no-untyped-call]
    return found


def plain_token_logprobs(states: Tensor, output: Tensor, tokens: Tensor) -> Tensor:
    """Return the same from whole logits, by autograd: the reference."""
    logits = torch.nn.functional.linear(states, output)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


class _TokenLogprobs(torch.autograd.Function):
    """Keeps for each state the gradient of its own log-probability, [reads, hidden], instead of its logits.

    d logp(t) / d state = W[t] - sum_v p(v) W[v]: known in forward, and backward scales it.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, output: Tensor, tokens: Tensor) -> Tensor:
        wide = torch.promote_types(states.dtype, torch.float32)
        found = states.new_empty(len(states), dtype=wide)
        wants = ctx.needs_input_grad[0]
        gradient = torch.empty_like(states) if wants else None
        for start in range(0, len(states), CHUNK):
            part = slice(start, start + CHUNK)
            logits = torch.nn.functional.linear(states[part], output).to(wide)
            sums = logits.logsumexp(-1, keepdim=True)
            found[part] = (logits.gather(1, tokens[part, None]) - sums)[:, 0]
            if gradient is not None:
                likely = torch.sub(logits, sums, out=logits).exp_().to(output.dtype)
                torch.sub(output.index_select(0, tokens[part]), likely @ output, out=gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None
