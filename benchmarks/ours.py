"""The engine of this repository as the benchmarks drive it: step by step, in the calling thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from workload import BASE, Ask

from adapterhub.base.describe import hidden_size
from adapterhub.base.load import compute_dtype, load_backbone
from adapterhub.base.source import open_base
from adapterhub.engine.engine import Engine
from adapterhub.engine.request import Adapter, Event, FailedEvent, Request, Sampling, TokenEvent
from adapterhub.engine.scheduler import Limits
from adapterhub.lora.files import read_adapter
from adapterhub.native.product import pack_product
from adapterhub.native.threads import choose_threads
from adapterhub.runtime.threads import decode_chain

# Long enough for any load; an engine that is stuck must not hang a benchmark for ever.
_PATIENCE = 60.0


@dataclass
class Heard:
    """What one request has said so far, and when, in seconds of time.perf_counter()."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    done: bool = False
    request: Request | None = None
    error: Exception | None = None

    def __call__(self, event: Event) -> None:
        """Take an event; an error is kept for whoever waits."""
        if isinstance(event, FailedEvent):
            self.error, self.done = event.error, True
            return
        assert isinstance(event, TokenEvent)
        self.tokens.append(event.token)
        self.times.append(time.perf_counter())
        self.done = event.finish is not None


def _read_bytes(weight: Tensor) -> int:
    """Return the bytes in which the engine keeps a weight."""
    packed = pack_product(weight) if weight.ndim == 2 else None
    return weight.numel() * weight.element_size() if packed is None else packed.bytes


class Driven:
    """An engine on the default base and adapters from folders. `precision` as in AdapterHub; no prefix cache."""

    def __init__(
        self,
        folders: Sequence[Path],
        precision: str,
        limits: Limits,
        resident: int,
        threads: int | None = None,
        host_bytes: int = 8 << 30,
    ) -> None:
        base = open_base(BASE)
        self.dtype = compute_dtype(precision, "cpu")
        # In this order, as AdapterHub does it: workers that loading leaves behind would disturb the measuring.
        width = hidden_size(base)
        self.threads = choose_threads(threads, lambda: decode_chain(width, self.dtype))
        torch.set_num_threads(self.threads.count)
        model = load_backbone(base, self.dtype, "cpu")
        self.config = model.config
        # Before the engine packs them: every weight is read once a step, the embedding as the output layer's where it
        # is tied to it, as here.
        assert self.config.tie_word_embeddings
        self.base_bytes = sum(map(_read_bytes, model.parameters()))
        self.engine = Engine(
            model, base.context_length, limits=limits, resident=resident, host_bytes=host_bytes, prefix_bytes=0
        )
        self.adapters = [
            Adapter(folder.name, partial(read_adapter, folder, dtype=self.dtype)) for folder in map(Path, folders)
        ]

    def add(self, ask: Ask, share: str | None = "everybody", owner: str | None = None) -> Heard:
        """Queue a request, greedy and to its full length; `share` None queues it by its adapter, `owner` is its key."""
        heard = Heard()
        sampling = Sampling(ask.max_tokens, temperature=0.0, ignore_eos=True)
        adapter = self.adapters[ask.adapter] if ask.adapter >= 0 else None
        heard.request = Request(ask.tokens, heard, sampling, adapter, share, owner=owner)
        self.engine.add(heard.request)
        return heard

    def step(self) -> None:
        """Step once, or wait for an adapter that is being read."""
        if not self.engine.step() and self.engine.busy and not self.engine.wait(_PATIENCE):
            raise TimeoutError(f"nothing ran or was loaded for {_PATIENCE} s")

    def finish(self) -> None:
        """Step until nothing waits or runs."""
        while self.engine.busy:
            self.step()

    def run(self, asks: Sequence[Ask], share: str | None = "everybody") -> tuple[float, list[Heard]]:
        """Answer all; returns seconds and what was said. The first error of any request is raised."""
        started = time.perf_counter()
        heard = [self.add(ask, share) for ask in asks]
        self.finish()
        seconds = time.perf_counter() - started
        for each, ask in zip(heard, asks, strict=True):
            if each.error is not None:
                raise each.error
            assert len(each.tokens) == ask.max_tokens, f"{len(each.tokens)} tokens instead of {ask.max_tokens}"
        return seconds, heard
