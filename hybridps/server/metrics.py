"""Counters out, in Prometheus' text form; never read for decisions.

What the engine counts is asked of it at each scrape; what the wire counts (calls, seconds) is
noted here as it happens. All names begin with `hybridps_`. Labels are bounded: tables, tiers,
verbs of the schema, error classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIERS = ("dram", "nvme", "cold")
# From a hop between threads (30 us) to a client's default deadline (10 s).
SECONDS_BUCKETS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
# Counters of the engine that may fall as well as rise; every other one only grows.
GAUGES = frozenset(
    {"keys", "tables", "dram_limit", "nvme_limit", "stores_degraded", "stores_failed"}
    | {f"rows_{tier}" for tier in TIERS}
    | {"dram_bytes", "index_bytes", "nvme_bytes", "cold_bytes"}
)


@dataclass(frozen=True)
class Snapshot:
    """The engine's counters at one moment: of the store, and of each table."""

    store: Mapping[str, int]
    tables: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Counted(Protocol):
    """Who counts connections and bytes in flight: the listener."""

    @property
    def connections(self) -> int:
        """Connections open now."""

    @property
    def inflight_bytes(self) -> int:
        """Bytes of requests and replies in flight now."""


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
        self._children: dict[tuple[str, str], Callable[[float], None]] = {}

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Notes one answered call; `code` is `ok` or the name of an error class."""
        note = self._children.get((method, code))
        if note is None:
            note = self._children[method, code] = self._child(method, code)
        note(seconds)

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

    def exposition(self, snapshot: Snapshot | None, counted: Counted | None) -> bytes:
        """The scrape; without a snapshot (not open yet) only what the process itself knows."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(self._families(snapshot, counted)))
        return generate_latest(self._registry) + generate_latest(registry)

    def _child(self, method: str, code: str) -> Callable[[float], None]:
        requests = self._requests.labels(method, code)
        seconds = self._seconds.labels(method)

        def note(duration_s: float) -> None:
            requests.inc()
            seconds.observe(duration_s)

        return note

    def _families(self, snapshot: Snapshot | None, counted: Counted | None) -> Iterator[Metric]:
        build = InfoMetricFamily("hybridps_build", "Version and make of this server.")
        build.add_metric([], self._build)
        yield build
        if counted is not None:
            yield GaugeMetricFamily(
                "hybridps_connections", "Connections open.", value=counted.connections
            )
            yield GaugeMetricFamily(
                "hybridps_inflight_bytes",
                "Bytes of requests and replies in flight.",
                value=counted.inflight_bytes,
            )
        if snapshot is not None:
            yield from _store_families(snapshot.store)
            yield from _tier_families(snapshot.tables)
            yield from _table_families(snapshot.tables)


class _Scrape:
    """Hands prepared families to a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _store_families(store: Mapping[str, int]) -> Iterator[Metric]:
    for name, value in store.items():
        family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
        yield family(f"hybridps_store_{name}", f"Sum over the store: {name}.", value=value)


def _tier_families(tables: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    rows = GaugeMetricFamily("hybridps_rows", "Rows by tier.", labels=("table", "tier"))
    size = GaugeMetricFamily(
        "hybridps_storage_bytes", "Bytes that a table takes, by tier.", labels=("table", "tier")
    )
    for table, counters in tables.items():
        for tier in TIERS:
            rows.add_metric((table, tier), counters.get(f"rows_{tier}", 0))
            size.add_metric((table, tier), counters.get(f"{tier}_bytes", 0))
    yield rows
    yield size


def _table_families(tables: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    in_tiers = {f"rows_{tier}" for tier in TIERS} | {f"{tier}_bytes" for tier in TIERS}
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for table, counters in tables.items():
        for name, value in counters.items():
            if name in in_tiers:
                continue
            if name not in families:
                family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
                families[name] = family(
                    f"hybridps_{name}", f"Of one table: {name}.", labels=("table",)
                )
            families[name].add_metric((table,), value)
    yield from families.values()
