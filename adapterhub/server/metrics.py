"""What the server counts, for Prometheus; label values come from the registry, never from what a client typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from adapterhub.runtime.target import AdapterNumbers

NO_ADAPTER = "none"
UNKNOWN_ADAPTER = "unknown"
OTHER_ADAPTERS = "others"
# Adapters that have series of their own; a registry may hold any number of versions.
MOST_ADAPTERS = 256
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# What a number of the engine is called where its own key would not say what is counted, or not end in the unit.
NAMES = {
    "running": "running_rows",
    "waiting": "waiting_rows",
    "loading": "loading_adapters",
    "host_bytes": "host_adapter_bytes",
    "prefix_tokens_reused": "prefix_reused_tokens",
    "threads": "compute_threads",
}
COUNTED = frozenset({"adapter_loads", "adapter_evictions", "adapter_reads", "prefix_hits", "prefix_tokens_reused"})
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class EngineNumbers:
    """The engine's own numbers, read when asked for; one metric a key."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Describe nothing beforehand: the keys are the engine's."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield a metric for each number."""
        for key, value in self._read().items():
            name = NAMES.get(key, key)
            family = CounterMetricFamily if key in COUNTED else GaugeMetricFamily
            yield family(f"adapterhub_{name}", f"Engine: {name.replace('_', ' ')}.", value=float(value))


class PerAdapter:
    """What the engine did for each adapter, read when asked for."""

    def __init__(self, read: Callable[[], Sequence[AdapterNumbers]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Describe nothing beforehand."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield a family a number, with a sample an adapter."""
        found = self._read()
        queue = SummaryMetricFamily(
            "adapterhub_queue_seconds", "Time from a row's coming to the engine to its first step.", labels=["adapter"]
        )
        for each in found:
            queue.add_metric([each.name], each.counts.started, each.counts.queue_seconds)
        yield queue
        counters: tuple[tuple[str, str, Callable[[AdapterNumbers], int]], ...] = (
            ("slot_loads", "How often the adapter came into a slot.", lambda each: each.counts.loads),
            ("slot_evictions", "How often it made room for another.", lambda each: each.counts.evictions),
            ("prompt_prefix_hits", "Prompts whose beginning was known.", lambda each: each.counts.prefix_hits),
            ("prompt_prefix_tokens", "Tokens not computed again.", lambda each: each.counts.prefix_tokens),
        )
        for name, meaning, value in counters:
            counter = CounterMetricFamily(f"adapterhub_{name}", meaning, labels=["adapter"])
            for each in found:
                counter.add_metric([each.name], value(each))
            yield counter
        resident = GaugeMetricFamily(
            "adapterhub_resident", "1 while the adapter is in a slot, ready to run.", labels=["adapter"]
        )
        for each in found:
            resident.add_metric([each.name], float(each.residency.slot))
        yield resident


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(
        self,
        engine: Callable[[], Mapping[str, float]],
        adapters: Callable[[], Sequence[AdapterNumbers]] = tuple,
    ) -> None:
        self._labels: set[str] = set()
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "adapterhub_requests", "Requests answered.", ["adapter", "route", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "adapterhub_prompt_tokens", "Tokens of prompts answered.", ["adapter"], registry=registry
        )
        self.completion_tokens = Counter(
            "adapterhub_completion_tokens", "Tokens generated.", ["adapter"], registry=registry
        )
        self.seconds = Histogram(
            "adapterhub_request_seconds",
            "Time from a request's arrival to its last byte.",
            ["adapter", "route"],
            registry=registry,
            buckets=SECONDS,
        )
        self.first_token = Histogram(
            "adapterhub_time_to_first_token_seconds",
            "Time from a request's arrival to its first generated token.",
            ["adapter"],
            registry=registry,
            buckets=SECONDS,
        )
        self.token_seconds = Histogram(
            "adapterhub_time_per_output_token_seconds",
            "Time between the tokens of an answer, after its first.",
            ["adapter"],
            registry=registry,
            buckets=TOKEN_SECONDS,
        )
        registry.register(EngineNumbers(engine))
        registry.register(PerAdapter(adapters))
        ProcessCollector(registry=registry)

    def label(self, adapter: str) -> str:
        """Return the adapter's own label, or that of all others once there are many."""
        if adapter not in self._labels and len(self._labels) >= MOST_ADAPTERS:
            return OTHER_ADAPTERS
        self._labels.add(adapter)
        return adapter

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)
