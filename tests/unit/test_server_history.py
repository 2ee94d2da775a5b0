"""Goal: the status page's lines say what happened then. Method: samples made by hand, held against
Prometheus' rule for quantiles and against plain differences; charts read as XML."""

import math
from xml.etree import ElementTree as ET

import pytest

from hybridps.server.charts import draw, short
from hybridps.server.exposition import Snapshot
from hybridps.server.history import EVERY_S, WINDOW_S, Chart, History, quantile
from hybridps.server.metrics import SECONDS_BUCKETS, Metrics
from hybridps.server.samples import Sample

NONE = (0,) * (len(SECONDS_BUCKETS) + 1)
LIMITS = {"dram_limit": 64 << 20, "nvme_limit": 1 << 30}


def sample(at: float, latencies: tuple[int, ...] = NONE, **store: int) -> Sample:
    return Sample(at, Snapshot({"tables": 1, **store}), {}, b"", 0.0, latencies)


def lines(history: History, title: str) -> dict[str, list[tuple[float, float]]]:
    return next(chart.lines for chart in history.charts(LIMITS) if chart.title == title)


def test_a_rate_is_that_between_two_samples_and_not_since_the_start() -> None:
    history = History()
    for at, keys in ((0.0, 1_000_000), (5.0, 1_000_500), (15.0, 1_000_600)):
        history.note(sample(at, unique_keys=keys))
    assert lines(history, "Keys a second") == {"keys": [(-10 / 60, 100.0), (0.0, 10.0)]}


def test_a_ratio_without_calls_is_a_gap_and_not_zero() -> None:
    history = History()
    for at, hits, misses in ((0, 0, 0), (5, 30, 10), (10, 30, 10), (15, 30, 20)):
        history.note(sample(at, cache_hits=hits, cache_misses=misses))
    assert lines(history, "Hit ratio, %") == {"hits": [(-10 / 60, 75.0), (0.0, 0.0)]}


def test_old_samples_go_and_close_ones_are_not_kept() -> None:
    history = History()
    for n in range(1000):
        history.note(sample(n * EVERY_S / 2, unique_keys=n))
        history.note(sample(n * EVERY_S / 2, unique_keys=n))
    kept = lines(history, "Keys a second")["keys"]
    assert len(kept) == WINDOW_S / EVERY_S
    assert kept[0][0] >= -WINDOW_S / 60
    assert {value for _, value in kept} == {2 / EVERY_S}


def test_a_store_that_is_being_opened_is_unknown_and_not_empty() -> None:
    history = History()
    history.note(Sample(0.0, Snapshot({}), {}, b"", 0.0, NONE))
    history.note(sample(5.0, unique_keys=10**9))
    assert history.charts(LIMITS) == []
    history.note(sample(10.0, unique_keys=10**9))
    assert lines(history, "Keys a second") == {"keys": [(0.0, 0.0)]}


def test_quantiles_follow_the_buckets() -> None:
    assert quantile(0.5, NONE) is None
    one = [0] * len(NONE)
    one[3] = 10
    low, high = SECONDS_BUCKETS[2], SECONDS_BUCKETS[3]
    assert quantile(0.5, one) == pytest.approx(low + (high - low) / 2)
    assert quantile(1.0, one) == high
    one[5] = 90
    assert SECONDS_BUCKETS[4] < (quantile(0.5, one) or 0) < SECONDS_BUCKETS[5]
    one[-1] = 1000
    assert quantile(0.99, one) == SECONDS_BUCKETS[-1], "what is above all bounds is at least that"


def test_latencies_are_of_calls_that_touch_rows() -> None:
    metrics = Metrics("1", (0, 1), "asyncio")
    for seconds in (0.00001, 0.003, 0.003, 99.0):
        metrics.observe("lookup", "ok", seconds, 0.0)
    metrics.observe("applyGradients", "ok", 0.003, 0.0)
    metrics.observe("hello", "ok", 0.003, 0.0)
    counts = metrics.latencies()
    assert counts[0] == 1
    assert counts[SECONDS_BUCKETS.index(0.005)] == 3
    assert counts[-1] == 1
    assert sum(counts) == 5


def test_a_chart_is_one_element_that_holds_its_lines_and_no_script() -> None:
    series = [(-minute, float(minute)) for minute in range(14, -1, -1)]
    drawn = ET.fromstring(draw(Chart("<&>", {"a": series, "b": []}, bound=20.0)))  # noqa: S314
    assert drawn.tag == "svg"
    tags = [element.tag for element in drawn.iter()]
    assert tags.count("path") == 2, "a line with points, and the bound"
    assert not {"script", "image", "style", "foreignObject"} & set(tags)
    assert "<&>" in "".join(drawn.itertext())
    assert draw(Chart("<&>", {"a": []})) == "<p>&lt;&amp;&gt;: no calls yet.</p>"


@pytest.mark.parametrize("value", [0.0, 1e-9, 5e15])
def test_a_flat_line_is_drawn_too(value: float) -> None:
    assert draw(Chart("t", {"a": [(-1.0, value), (0.0, value)]})).startswith("<svg ")
    assert math.isfinite(float(short(value).rstrip("kMG")))
