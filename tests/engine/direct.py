"""Drive a runner by hand, without engine or scheduler: rows, spans, and what comes out."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterhub.engine.plan import Plan, Span
from adapterhub.engine.request import Adapter, Ask, Request, Row, Sampling
from adapterhub.engine.runner import Runner
from adapterhub.lora.ops import NO_SLOT


class Direct:
    """Rows on a runner; every forward is asked for by name."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._slots: dict[str, int] = {}

    def row(self, tokens: list[int], adapter: Adapter | None = None, ask: Ask | None = None, *, room: int = 0) -> Row:
        slot = NO_SLOT if adapter is None else self._slot(adapter)
        request = Request(tuple(tokens), lambda _: None, ask or Sampling(64), adapter)
        row = Row(request, slot)
        if self.runner.cache is not None:
            row.place = self.runner.cache.take(max(room, request.room))
            assert row.place is not None
        return row

    def span(self, row: Row, start: int, stop: int) -> Span:
        tokens = row.request.tokens
        return Span(row, tokens[start:stop], start, keeps=row.place is not None, last=stop == len(tokens))

    def prefill(self, rows: list[Row], chunk: int | None = None) -> list[Tensor]:
        """Return each row's logits after its prompt, `chunk` tokens of every row a step."""
        found: dict[int, Tensor] = {}
        start = 0
        while len(found) < len(rows):
            size = chunk or 1_000_000
            spans = [
                self.span(row, start, min(start + size, n)) for row in rows if start < (n := len(row.request.tokens))
            ]
            found |= self._logits(Plan((), tuple(spans)))
            start += size
        return [found[id(row)] for row in rows]

    def decode(self, rows: list[Row], tokens: list[int]) -> list[Tensor]:
        """Append a token to each row and return the logits after it."""
        for row, token in zip(rows, tokens, strict=True):
            row.output.append(token)
        found = self._logits(Plan(tuple(rows)))
        return [found[id(row)] for row in rows]

    def leave(self, row: Row) -> None:
        assert self.runner.cache is not None
        assert row.place is not None
        self.runner.cache.release(row.place)

    @torch.inference_mode()
    def _logits(self, plan: Plan) -> dict[int, Tensor]:
        outcome = self.runner.run(plan)
        if outcome.logits is None:
            return {}
        return {id(row): logits for row, logits in zip(outcome.generating, outcome.logits, strict=True)}

    def _slot(self, adapter: Adapter) -> int:
        if adapter.digest not in self._slots:
            self._slots[adapter.digest] = len(self._slots)
            self.runner.load(self._slots[adapter.digest], self.runner.prepare(adapter, adapter.read()))
        return self._slots[adapter.digest]
