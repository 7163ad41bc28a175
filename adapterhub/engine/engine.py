"""The engine: schedule, run, postprocess."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from adapterhub.base.llama import LlamaWeights
from adapterhub.errors import UsageError

from .answers import add_logprobs, add_state, broken, embedding_event, finite, head_event, scores_event
from .check import check_request
from .loader import Loader
from .plan import Plan, Span
from .prefix_cache import PrefixCache
from .request import Embed, Event, FailedEvent, Request, Row, TokenEvent
from .reuse import PrefixReuse
from .runner import Outcome, Runner
from .sampler import sample
from .scheduler import Limits, Scheduler
from .slots import Slots
from .tally import Residency, Tally
from .tiers import Tiers


class Engine:
    """Answers requests of many adapters in shared batches. Not thread-safe: one thread owns it (see EngineLoop).

    `base` is the weights of the Llama family, or a frozen transformers causal LM or encoder; `context` the most
    positions a row may take. `resident` adapters are in slots at once, `host_bytes` of adapters in host memory,
    `prefix_bytes` of states are kept for prompts that begin alike (0: none). `fingerprint` is the base's. `reference`
    forces the general network, of a model.
    """

    def __init__(
        self,
        base: LlamaWeights | Any,
        context: int,
        *,
        limits: Limits | None = None,
        resident: int = 32,
        host_bytes: int = 1 << 30,
        prefix_bytes: int = 256 << 20,
        fingerprint: str = "",
        reference: bool = False,
    ) -> None:
        self.limits = limits or Limits()
        _check_sizes(self.limits, resident, host_bytes, prefix_bytes)
        self.runner = Runner(base, cache_tokens=self.limits.cache_tokens, resident=resident, reference=reference)
        self.context = context
        self.tally = Tally()
        self.slots = Slots(resident, self.runner.load, self.runner.unload, self.tally)
        self.loader = Loader(host_bytes, self.runner.prepare)
        self.prefixes = PrefixCache(prefix_bytes)
        self.tiers = Tiers(self.slots, self.loader, self.prefixes.drop)
        self._reuse = PrefixReuse(self.prefixes, self.runner.cache, fingerprint, self.runner.identity, self.tally)
        self.scheduler = Scheduler(self.limits, self.tiers, self.runner.cache, self._reuse.restore, self.tally)

    def check(self, request: Request) -> None:
        """Raise what is wrong with a request before it is queued: PromptTooLong, InvalidRequest, UnsupportedRequest."""
        check_request(request, self.runner, self.context, self.limits.cache_tokens)

    def add(self, request: Request) -> None:
        """Queue a request; raises as `check` does, or Overloaded. Its adapter is read from now on."""
        self.check(request)
        self.scheduler.add(request)

    @property
    def busy(self) -> bool:
        """True while anything waits or runs."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    @torch.inference_mode()
    def step(self) -> bool:
        """Advance every running row by one token and start what fits; return whether anything ran.

        Where nothing did, nothing will before a request comes, one is cancelled, or the loader has news (`wait`).
        """
        self.loader.clear()
        self.scheduler.drop_cancelled()
        plan = self.scheduler.schedule()
        if not plan.decode and not plan.prefill:
            return False
        try:
            begun = time.perf_counter()
            self._postprocess(plan, self.runner.run(plan))
            tokens = len(plan.decode) + sum(len(span.tokens) for span in plan.prefill)
            self.scheduler.cost.note(tokens, time.perf_counter() - begun)
        except Exception as error:  # one forward serves all rows, so they fail together; the engine goes on
            self._fail(plan, error)
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the loader has had news since the last step began, or `timeout` seconds; return if it had."""
        return self.loader.wait(timeout)

    def listen(self, on_news: Callable[[], None]) -> None:
        """Have `on_news` called, in the loader's thread, whenever an adapter has been read or could not be."""
        self.loader.on_news = on_news

    @torch.inference_mode()
    def forget(self, digest: str) -> None:
        """Free an adapter's slot, host memory and cached states: now, or once the last request using it is done."""
        self.tiers.forget(digest)

    def pin(self, digest: str) -> None:
        """Keep an adapter resident once it is loaded; raises UsageError where all slots but one are pinned."""
        self.tiers.pin(digest)

    def unpin(self, digest: str) -> None:
        """Let an adapter leave by the usual rules again."""
        self.tiers.unpin(digest)

    def stats(self) -> Mapping[str, float]:
        """Return counters by name; may be called from any thread."""
        cache = self.runner.cache
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "loading": self.loader.loading,
            "resident_adapters": len(self.slots),
            "adapter_loads": self.slots.loads,
            "adapter_evictions": self.slots.evictions,
            "adapter_reads": self.loader.reads,
            "host_adapters": len(self.loader.adapters),
            "host_bytes": self.loader.bytes,
            "prefix_hits": self.prefixes.hits,
            "prefix_tokens_reused": self.prefixes.reused,
            "kv_cache_bytes": cache.bytes if cache else 0,
            "prefix_cache_bytes": self.prefixes.bytes,
        }

    def residency(self) -> Mapping[str, Residency]:
        """Return where each adapter is that is in memory at all; may be called from any thread."""
        slots, memory, pinned = set(self.slots.resident), set(self.loader.adapters), self.slots.pinned
        return {
            digest: Residency(digest in slots, digest in memory, digest in pinned) for digest in slots | memory | pinned
        }

    def close(self) -> None:
        """Stop the loader; what waits for it fails with Cancelled at the next step."""
        self.loader.close()

    @torch.inference_mode()
    def fail_all(self, error: Exception) -> None:
        """End everything waiting and running with an error; touches no tensor before everybody is told."""
        rows = list(self.scheduler.running)
        for request in [waiter.request for waiter in self.scheduler.waiting] + [row.request for row in rows]:
            request.tell(FailedEvent(error))
        self.scheduler.clear()
        for row in rows:
            self.scheduler.finish(row)

    def _postprocess(self, plan: Plan, outcome: Outcome) -> None:
        for row, logits in outcome.heads:
            self._end(row, head_event(row, logits))
        for row, state in outcome.states:
            add_state(row, state)
        for span in plan.prefill:
            if span.last and isinstance(span.row.request.ask, Embed):
                self._end(span.row, embedding_event(span.row))
        for span, logprobs in outcome.scores:
            self._score(span, logprobs)
        if outcome.logits is not None:
            for row, event in zip(outcome.generating, sample(outcome.logits, outcome.generating), strict=True):
                self._say(row, event)

    def _say(self, row: Row, event: Event) -> None:
        if not isinstance(event, TokenEvent):
            self._end(row, event)
            return
        row.output.append(event.token)
        # Kept as soon as the prompt is through, for those that begin alike; with the answer again, for the next turn.
        if len(row.output) == 1 or event.finish is not None:
            self._reuse.keep(row)
        if event.finish is not None:
            self._end(row, event)
        else:
            row.request.tell(event)

    def _score(self, span: Span, logprobs: torch.Tensor) -> None:
        row = span.row
        if row not in self.scheduler.running:  # an earlier span of this step failed it
            return
        if not finite(logprobs):
            self._end(row, broken(row))
            return
        add_logprobs(span, logprobs.tolist())
        if span.last:
            self._reuse.keep(row)
        event = scores_event(row)
        if event is not None:
            self._end(row, event)

    def _end(self, row: Row, event: Event) -> None:
        self.scheduler.finish(row)
        row.request.tell(event)

    def _fail(self, plan: Plan, error: Exception) -> None:
        planned = dict.fromkeys((*plan.decode, *(span.row for span in plan.prefill)))
        rows = [row for row in planned if row in self.scheduler.running]  # others were answered before it failed
        for row in rows:
            row.request.tell(FailedEvent(error))
        for row in rows:
            self.scheduler.finish(row)


def _check_sizes(limits: Limits, resident: int, host_bytes: int, prefix_bytes: int) -> None:
    """Raise UsageError for the first size that leaves no room for anything."""
    least = {
        "resident": (resident, 1),
        "rows": (limits.rows, 1),
        "step_tokens": (limits.step_tokens, 1),
        "chunk_tokens": (limits.chunk_tokens, 1),
        "cache_tokens": (limits.cache_tokens, 1),
        "queue": (limits.queue, 1),
        "host_bytes": (host_bytes, 0),
        "prefix_bytes": (prefix_bytes, 0),
    }
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise UsageError(f"{name} is {value}; it must be at least {lowest}")
