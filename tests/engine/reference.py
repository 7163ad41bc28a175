"""What the reference runner says of a whole text, one row at a time: the judge of what an engine answered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapterhub.engine.batch import Batch
from adapterhub.engine.plan import Plan, Span
from adapterhub.engine.request import Adapter, Classify, Request, Row
from adapterhub.engine.runner import Runner
from adapterhub.lora.ops import NO_SLOT


class Judge:
    """The general network with adapters in slots of their own; every text runs alone, whole and without any cache."""

    def __init__(self, model: Any) -> None:
        self.runner = Runner(model, reference=True)
        self._slots: dict[str, int] = {}

    @torch.inference_mode()
    def states(self, tokens: list[int], adapter: Adapter | None) -> Tensor:
        """Hidden states [tokens, dim]."""
        row = Row(Request(tuple(tokens), lambda _: None, Classify(), adapter), self._slot(adapter))
        batch = Batch(Plan((), (Span(row, row.request.tokens, 0, False, True),)), None, self.runner.device, causal=True)
        return self.runner._network.forward(batch)

    @torch.inference_mode()
    def logits(self, tokens: list[int], adapter: Adapter | None) -> Tensor:
        """Next-token logits [tokens, vocabulary]."""
        return self.runner._network.logits(self.states(tokens, adapter)).double()

    def head(self, tokens: list[int], adapter: Adapter) -> Tensor:
        """Logits [labels] of the adapter's head over the last token."""
        weight = adapter.read().head["score.weight"]
        return self.states(tokens, adapter)[-1].to(weight.dtype) @ weight.T

    def shortfall(self, prompt: list[int], answer: list[int], adapter: Adapter | None) -> float:
        """How far the worst token of an answer lies below the likeliest one, in logits; 0 is plain greedy."""
        if not answer:
            return 0.0
        logits = self.logits(prompt + answer[:-1], adapter)[len(prompt) - 1 :]
        return float((logits.max(dim=-1).values - logits[range(len(answer)), answer]).max())

    def _slot(self, adapter: Adapter | None) -> int:
        if adapter is None:
            return NO_SLOT
        if adapter.digest not in self._slots:
            self._slots[adapter.digest] = len(self._slots)
            self.runner.load(self._slots[adapter.digest], self.runner.prepare(adapter, adapter.read()))
        return self._slots[adapter.digest]
