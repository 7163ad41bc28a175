"""Drive an engine by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from adapterhub.engine.engine import Engine
from adapterhub.engine.request import Adapter, Event, FailedEvent, LogitsEvent, Request, Sampling, TokenEvent
from adapterhub.lora.files import read_adapter
from tests.tiny import ENCODERS, FAMILIES

# Beside the families every room is tested with: RoBERTa, whose positions and head are its own.
ALL = (*FAMILIES, "roberta")
DECODERS = tuple(family for family in FAMILIES if family not in ENCODERS)
POOLING = {"bert": "pooler", "roberta": "cls"}


def make_engine(base: Path, family: str, *, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Engine:
    cls = AutoModel if family in ENCODERS else AutoModelForCausalLM
    return Engine(cls.from_pretrained(base, dtype=dtype), 512, **kwargs)


def adapter_of(folder: Path, family: str, *, labels: bool, dtype: torch.dtype = torch.float32) -> Adapter:
    pooling = POOLING.get(family, "last") if labels else None
    return Adapter(f"sha256:{folder.name}", read_adapter(folder, dtype=dtype), pooling)


class Asked:
    """A request and the events it got."""

    def __init__(self, tokens: list[int], adapter: Adapter | None = None, **sampling: Any) -> None:
        self.events: list[Event] = []
        options = Sampling(**{"temperature": 0.0, **sampling}) if sampling else None
        self.request = Request(tuple(tokens), self.events.append, adapter, options)

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
    def error(self) -> Exception | None:
        return next((e.error for e in self.events if isinstance(e, FailedEvent)), None)


def finish(engine: Engine, *asked: Asked, steps: int = 500) -> None:
    for item in asked:
        engine.add(item.request)
    for _ in range(steps):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine did not finish")
