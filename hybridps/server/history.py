"""What the status page draws of the last minutes: a few numbers kept every few seconds.

Pure: samples in, series out. Rates and quantiles are those between two neighbouring samples, so a
line shows what happened then and not an average since the start.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hybridps.server.metrics import SECONDS_BUCKETS
from hybridps.server.samples import Sample

WINDOW_S = 15 * 60.0
EVERY_S = 5.0
_MIB = 1 << 20

# Minutes before now, and the value then.
Series = list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines that are drawn together; `bound`, if any, is drawn across."""

    title: str
    lines: dict[str, Series]
    bound: float | None = None


@dataclass(frozen=True)
class _Point:
    """What is kept of a sample: tables and labels are not."""

    at: float
    store: dict[str, int]
    latencies: tuple[int, ...]


_KEPT = (
    *("unique_keys", "cache_hits", "cache_misses", "device_reads", "background_reads"),
    *("dram_bytes", "nvme_bytes", "cold_bytes"),
)


class History:
    """Samples of the last `WINDOW_S`, none closer to the last than `EVERY_S`."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque()

    def note(self, sample: Sample) -> None:
        """Keeps a sample, and forgets those that are too old. A sample seen before is left out."""
        if self._points and sample.at - self._points[-1].at < EVERY_S * 0.9:
            return
        store = {name: sample.snapshot.store.get(name, 0) for name in _KEPT}
        if not sample.snapshot.store:
            return  # The store is being opened: its counters are unknown, not zero.
        self._points.append(_Point(sample.at, store, sample.latencies))
        while self._points[0].at < sample.at - WINDOW_S:
            self._points.popleft()

    def charts(self, limits: Mapping[str, int]) -> list[Chart]:
        """What is drawn, none before there are two samples; from any thread.

        `limits` are the store's counters that end in `_limit`, in bytes.
        """
        points = list(self._points)
        if len(points) < 2:  # noqa: PLR2004
            return []

        def rate(name: str) -> Series:
            return _between(points, lambda a, b: (b.store[name] - a.store[name]) / (b.at - a.at))

        def level(name: str) -> Series:
            return [((p.at - points[-1].at) / 60, p.store[name] / _MIB) for p in points]

        def bound(name: str) -> float | None:
            return limits[name] / _MIB if limits.get(name) else None

        p50, p99 = (_between(points, _quantile_of(share)) for share in (0.5, 0.99))
        filling = [("DRAM, MiB", "dram"), ("NVMe, MiB", "nvme")]
        if limits.get("cold_limit"):
            filling.append(("Cold, MiB", "cold"))
        return [
            Chart("Keys a second", {"keys": rate("unique_keys")}),
            Chart("Hit ratio, %", {"hits": _between(points, _hit_ratio)}),
            Chart("Latency of calls, ms", {"p50": p50, "p99": p99}),
            Chart(
                "Device reads a second",
                {"calls": rate("device_reads"), "background": rate("background_reads")},
            ),
            *(
                Chart(title, {"held": level(f"{tier}_bytes")}, bound(f"{tier}_limit"))
                for title, tier in filling
            ),
        ]


def quantile(
    share: float, counts: Sequence[int], bounds: Sequence[float] = SECONDS_BUCKETS
) -> float | None:
    """Seconds within which that share of the calls was answered; None without a call.

    `counts` holds the calls up to each of `bounds` and, last, those above. Linear within a
    bucket, as Prometheus' `histogram_quantile` is; calls above all buckets count as the last bound.
    """
    wanted = share * sum(counts)
    if not sum(counts):
        return None
    below = 0.0
    for low, high, count in zip((0.0, *bounds), bounds, counts, strict=False):
        if count and below + count >= wanted:
            return low + (high - low) * (wanted - below) / count
        below += count
    return bounds[-1]


def _between(points: Sequence[_Point], value: Callable[[_Point, _Point], float | None]) -> Series:
    """One value for each pair of neighbours that has one."""
    last = points[-1].at
    values = [((b.at - last) / 60, value(a, b)) for a, b in pairwise(points)]
    return [(at, max(found, 0.0)) for at, found in values if found is not None]


def _hit_ratio(a: _Point, b: _Point) -> float | None:
    hits, misses = (b.store[n] - a.store[n] for n in ("cache_hits", "cache_misses"))
    return 100 * hits / (hits + misses) if hits + misses > 0 else None


def _quantile_of(share: float) -> Callable[[_Point, _Point], float | None]:
    def value(a: _Point, b: _Point) -> float | None:
        seconds = quantile(share, [y - x for x, y in zip(a.latencies, b.latencies, strict=True)])
        return None if seconds is None else 1000 * seconds

    return value
