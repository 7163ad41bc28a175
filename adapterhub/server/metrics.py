"""What the server counts, for Prometheus; label values come from the registry, never from what a client typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

NO_ADAPTER = "none"
UNKNOWN_ADAPTER = "unknown"
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


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self, engine: Callable[[], Mapping[str, float]]) -> None:
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
        registry.register(EngineNumbers(engine))
        ProcessCollector(registry=registry)

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)
