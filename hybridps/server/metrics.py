"""What the wire counts: calls, their seconds, refusals. Noted as it happens, never read for
decisions. What the engine counts is in `exposition`.

All names begin with `hybridps_`. Labels are bounded: verbs of the schema, error classes, limits.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector

from hybridps.verbs import VERBS
from hybridps.verbs.calls import Hot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a hop between threads (30 us) to a client's default deadline (10 s).
SECONDS_BUCKETS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)

# Calls whose latency people ask about; the others are an operator's, come once, or never wait.
ROWS_METHODS = frozenset(
    name for name, verb in VERBS.items() if issubclass(verb, Hot) and not verb.IS_INSTANT
)


class Counted(Protocol):
    """Who counts connections and bytes in flight: the listener."""

    @property
    def connections(self) -> int:
        """Connections open now."""

    @property
    def inflight_bytes(self) -> int:
        """Bytes of requests and replies in flight now."""

    @property
    def waiting_pushes(self) -> int:
        """Pushes that wait for those of other workers now."""


class Metrics:
    """All counters of one server, in a registry of their own."""

    def __init__(self, version: str, shard: tuple[int, int], loop: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(namespace="hybridps", registry=self._registry)
        self._requests = Counter(
            "hybridps_requests",
            "Calls answered, by verb and outcome (ok or the class of the error).",
            ("method", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "hybridps_request_seconds",
            "Seconds from a call's last byte read to its answer.",
            ("method",),
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._waits = Histogram(
            "hybridps_wait_seconds",
            "Of these, seconds before the engine began: order of calls, budgets, queue.",
            ("method",),
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._rejected = Counter(
            "hybridps_rejected",
            "Connections and calls refused by a limit.",
            ("limit",),
            registry=self._registry,
        )
        self._build = {
            "version": version,
            "shard": f"{shard[0]}/{shard[1]}",
            "loop": loop,
        }
        # Looking a label up by name costs more than the addition itself.
        self._children: dict[tuple[str, str], Callable[[float, float], None]] = {}

    def observe(self, method: str, code: str, seconds: float, waited_s: float) -> None:
        """Notes one answered call; `code` is `ok` or the name of an error class.

        `seconds` since its last byte was read; `waited_s` of them before the engine began with it.
        """
        note = self._children.get((method, code))
        if note is None:
            note = self._children[method, code] = self._child(method, code)
        note(seconds, waited_s)

    def reject(self, limit: str) -> None:
        """Notes a connection or call refused by the limit of that name."""
        self._rejected.labels(limit).inc()

    def requests(self) -> dict[str, int]:
        """Calls answered so far by verb, whatever the outcome."""
        totals: dict[str, int] = {}
        for metric in self._requests.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    method = sample.labels["method"]
                    totals[method] = totals.get(method, 0) + int(sample.value)
        return totals

    def latencies(self) -> tuple[int, ...]:
        """Calls that read or change rows, by the bucket of `SECONDS_BUCKETS` they fall into; one
        more at the end for those above all bounds.
        """
        within = dict.fromkeys([*SECONDS_BUCKETS, float("inf")], 0.0)
        for metric in self._seconds.collect():
            for sample in metric.samples:
                if sample.name.endswith("_bucket") and sample.labels["method"] in ROWS_METHODS:
                    within[float(sample.labels["le"])] += sample.value
        up_to = [0, *(int(within[bound]) for bound in sorted(within))]
        return tuple(b - a for a, b in pairwise(up_to))

    def exposition(self, counted: Counted | None) -> bytes:
        """What the wire and the process count, in Prometheus' text form. From any thread."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Gauges(self._build, counted))
        return generate_latest(self._registry) + generate_latest(registry)

    def _child(self, method: str, code: str) -> Callable[[float, float], None]:
        requests = self._requests.labels(method, code)
        seconds = self._seconds.labels(method)
        waits = self._waits.labels(method)

        def note(duration_s: float, waited_s: float) -> None:
            requests.inc()
            seconds.observe(duration_s)
            waits.observe(waited_s)

        return note


class _Gauges:
    """What is known when it is asked for."""

    def __init__(self, build: dict[str, str], counted: Counted | None) -> None:
        self._build = build
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        """Families, as a registry asks for them."""
        build = InfoMetricFamily("hybridps_build", "Version and make of this server.")
        build.add_metric([], self._build)
        yield build
        if self._counted is not None:
            yield GaugeMetricFamily(
                "hybridps_connections", "Connections open.", value=self._counted.connections
            )
            yield GaugeMetricFamily(
                "hybridps_inflight_bytes",
                "Bytes of requests and replies in flight.",
                value=self._counted.inflight_bytes,
            )
            yield GaugeMetricFamily(
                "hybridps_waiting_pushes",
                "Pushes that wait for those of other workers (connect(mode=sync)).",
                value=self._counted.waiting_pushes,
            )
