"""The engine's counters in Prometheus' text form. Pure: numbers in, text out.

A store may have thousands of tables with some thirty counters each, so lines are made here at once
instead of through objects of a client library. Labels are bounded: tables and tiers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TIERS = ("dram", "nvme", "cold")
# What the DRAM of a store is held for; the sum is `dram_bytes`.
DRAM_KINDS = (
    *("rows", "index", "statistics", "candidates", "slack", "segments"),
    *("buffers", "calls", "accounts", "sessions", "journal"),
)
# Counters that may fall as well as rise; every other one only grows.
GAUGES = frozenset(
    {"keys", "tables", "dram_limit", "nvme_limit", "cold_limit"}
    | {"stores_degraded", "stores_failed"}
    | {f"rows_{tier}" for tier in TIERS}
    | {f"{tier}_bytes" for tier in TIERS}
    | {f"dram_{kind}" for kind in DRAM_KINDS}
    | {"index_bytes", "candidates", "candidates_bytes", "role", "staleness_ms"}
)
# Told by tier.
_BY_TIER = {
    "rows": ("Rows by tier.", [f"rows_{tier}" for tier in TIERS]),
    "storage_bytes": ("Bytes that a table takes, by tier.", [f"{tier}_bytes" for tier in TIERS]),
}
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass(frozen=True)
class Snapshot:
    """The engine's counters at one moment: of the store, and of each table."""

    store: Mapping[str, int]
    tables: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def exposition(snapshot: Snapshot) -> bytes:
    """All lines of a scrape."""
    return "".join(_lines(snapshot)).encode()


def _lines(snapshot: Snapshot) -> Iterator[str]:
    for name, value in snapshot.store.items():
        metric = f"hybridps_store_{name}"
        yield _head(metric, name, f"Sum over the store: {name}.")
        yield f"{_sample(metric, name)} {value}\n"
    labels = {table: table.translate(_ESCAPES) for table in snapshot.tables}
    for name, (told, counters) in _BY_TIER.items():
        yield _head(f"hybridps_{name}", counters[0], told)
        for table, values in snapshot.tables.items():
            for tier, counter in zip(TIERS, counters, strict=True):
                label = f'table="{labels[table]}",tier="{tier}"'
                yield f"hybridps_{name}{{{label}}} {values.get(counter, 0)}\n"
    by_tier = {counter for _, counters in _BY_TIER.values() for counter in counters}
    names = dict.fromkeys(name for values in snapshot.tables.values() for name in values)
    for name in names:
        if name not in by_tier:
            yield from _table_lines(name, snapshot.tables, labels)


def _table_lines(
    name: str, tables: Mapping[str, Mapping[str, int]], labels: Mapping[str, str]
) -> Iterator[str]:
    metric = f"hybridps_{name}"
    yield _head(metric, name, f"Of one table: {name}.")
    sample = _sample(metric, name)
    for table, values in tables.items():
        if name in values:
            yield f'{sample}{{table="{labels[table]}"}} {values[name]}\n'


def _head(metric: str, name: str, told: str) -> str:
    kind = "gauge" if name in GAUGES else "counter"
    sample = _sample(metric, name)
    return f"# HELP {sample} {told}\n# TYPE {sample} {kind}\n"


def _sample(metric: str, name: str) -> str:
    return metric if name in GAUGES else f"{metric}_total"
