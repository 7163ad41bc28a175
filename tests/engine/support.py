"""Drive an engine by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from adapterhub.engine.engine import Engine
from adapterhub.engine.request import (
    Adapter,
    Ask,
    Classify,
    EmbeddingEvent,
    Event,
    FailedEvent,
    LogitsEvent,
    Request,
    Sampling,
    ScoresEvent,
    TokenEvent,
)
from adapterhub.lora.files import read_adapter
from tests.tiny import ENCODERS, FAMILIES

from .stand_ins import PATIENCE, settle

# Beside the families every room is tested with: RoBERTa, whose positions and head are its own.
ALL = (*FAMILIES, "roberta")
DECODERS = tuple(family for family in FAMILIES if family not in ENCODERS)
POOLING = {"bert": "pooler", "roberta": "cls"}


def make_engine(base: Path, family: str, *, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Engine:
    cls = AutoModel if family in ENCODERS else AutoModelForCausalLM
    return Engine(cls.from_pretrained(base, dtype=dtype), 512, **kwargs)


def adapter_of(folder: Path, family: str, *, labels: bool, dtype: torch.dtype = torch.float32) -> Adapter:
    pooling = POOLING.get(family, "last") if labels else None
    return Adapter(f"sha256:{folder.name}", lambda: read_adapter(folder, dtype=dtype), pooling)


class Asked:
    """A request and the events it got: of `ask`, of what `sampling` says, or without either of the head's logits."""

    def __init__(
        self,
        tokens: Sequence[int],
        adapter: Adapter | None = None,
        ask: Ask | None = None,
        *,
        share: str | None = None,
        weight: float = 1.0,
        **sampling: Any,
    ) -> None:
        self.events: list[Event] = []
        said = Sampling(**{"temperature": 0.0, **sampling}) if sampling else Classify()
        self.request = Request(tuple(tokens), self.events.append, ask or said, adapter, share, weight)

    @property
    def tokens(self) -> list[int]:
        assert not self.error, self.error
        return [e.token for e in self.events if isinstance(e, TokenEvent)]

    @property
    def logits(self) -> Tensor:
        assert not self.error, self.error
        (event,) = [e for e in self.events if isinstance(e, LogitsEvent)]
        return event.logits

    @property
    def vector(self) -> Tensor:
        assert not self.error, self.error
        (event,) = self.events
        assert isinstance(event, EmbeddingEvent)
        return event.vector

    @property
    def scores(self) -> tuple[tuple[float, ...], ...]:
        assert not self.error, self.error
        (event,) = self.events
        assert isinstance(event, ScoresEvent)
        return event.logprobs

    @property
    def error(self) -> Exception | None:
        return next((e.error for e in self.events if isinstance(e, FailedEvent)), None)


def finish(engine: Engine, *asked: Asked, steps: int = 500) -> None:
    """Answer everything; the first step finds all adapters read, so that what is asked together starts together."""
    for item in asked:
        engine.add(item.request)
    settle(engine.loader)
    for _ in range(steps):
        if not engine.busy:
            return
        if not engine.step():
            assert not engine.busy or engine.wait(PATIENCE), "nothing runs and nothing loads"
    raise AssertionError("the engine did not finish")


def assert_free(engine: Engine) -> None:
    """Nothing runs, and nothing is held by anybody who has left."""
    assert not engine.busy
    assert not len(engine.scheduler.counters)
    assert not engine.tiers._users
    assert not any(engine.slots._users)
    assert all(load.holds == 0 for load in engine.loader._loads.values())
    assert engine.runner.cache is None or not engine.runner.cache._blocks
