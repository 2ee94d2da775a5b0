"""Goal: health, metrics and the page tell the truth and nothing hostile gets through. Method: the
real HTTP server over counters made by hand, its text read by prometheus_client's own parser."""

import asyncio
import re
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from hybridps.config import Address
from hybridps.server import page
from hybridps.server.history import EVERY_S
from hybridps.server.metrics import Metrics
from hybridps.server.ops import Ops, Phase
from hybridps.server.samples import FRESH_MAX_S, Sampler
from hybridps.server.workers import Workers

HOSTILE = '<script>alert("x")</script>'
TABLE = dict.fromkeys(("keys", "rows_dram", "rows_nvme", "rows_cold", "cold_bytes"), 0) | {
    "dram_bytes": 1000,
    "index_bytes": 100,
    "nvme_bytes": 5000,
    "unique_keys": 50,
    "cache_hits": 30,
    "cache_misses": 10,
    "device_reads": 7,
}


class Store:
    """An engine with counters that a test sets."""

    def __init__(self, store: dict[str, int], tables: dict[str, dict[str, int]]) -> None:
        self.store = store
        self.tables = tables
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = 0

    def snapshot(self) -> tuple[dict[str, int], list[str], list[tuple[str, list[int]]]]:
        self.asked += 1
        self.may_answer.wait(30)
        names = list(next(iter(self.tables.values()), {}))
        return self.store, names, [(t, list(values.values())) for t, values in self.tables.items()]


class Running:
    """An ops server over an engine and a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.url = ""
        self.metrics = Metrics("1.2.3", (0, 1), "asyncio")
        self.workers = Workers(1)
        self.sampler = Sampler(self.metrics, self.workers, lambda: self.now)
        self.ops = Ops(self.sampler, self.workers, lambda: self.now)

    async def get(self, path: str, method: str = "GET") -> tuple[int, str, Any]:
        async with aiohttp.ClientSession() as http, http.request(method, self.url + path) as reply:
            return reply.status, await reply.text(), reply.headers


@dataclass
class Counted:
    connections: int = 3
    inflight_bytes: int = 4096
    waiting_pushes: int = 3


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    running = Running()
    running.url = f"http://{await running.ops.start(Address('127.0.0.1', 0))}"
    yield running
    await running.ops.stop()
    await running.workers.close()


async def opened(running: Running) -> Store:
    totals = {"tables": 2, "dram_limit": 8000, "nvme_limit": 64000, "dram_bytes": 2000}
    tables = {"item": {**TABLE, "keys": 40, "rows_dram": 30, "rows_nvme": 10}, HOSTILE: TABLE}
    store = Store({**TABLE, **totals}, tables)
    await running.sampler.use(store)  # type: ignore[arg-type]
    running.now += FRESH_MAX_S
    running.ops.phase = Phase.READY
    running.sampler.count(Counted())
    running.ops.facts = page.Facts("hps://h:1", f"/{HOSTILE}", "1.2.3", "always", (0, 1), "uvloop")
    return store


async def samples(running: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    status, text, headers = await running.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def test_livez_is_ok_and_readyz_follows_the_phase(running: Running) -> None:
    for phase, status in ((Phase.STARTING, 503), (Phase.READY, 200), (Phase.DRAINING, 503)):
        running.ops.phase = phase
        assert (await running.get("/livez"))[:2] == (200, "ok\n")
        assert (await running.get("/readyz"))[:2] == (status, f"{phase.value}\n")


async def test_a_failed_store_is_not_ready_and_says_why(running: Running) -> None:
    await opened(running)
    running.ops.phase, running.ops.told = Phase.FAILED, "failed: the <disk> is gone"
    assert (await running.get("/readyz"))[:2] == (503, "failed\nfailed: the <disk> is gone\n")
    assert (await running.get("/livez"))[:2] == (200, "ok\n")
    assert "the &lt;disk&gt; is gone" in (await running.get("/"))[1]
    running.ops.phase, running.ops.told = Phase.READY, "degraded: no room"
    assert (await running.get("/readyz"))[:2] == (200, "ready\ndegraded: no room\n")


async def test_a_look_waits_for_the_engine_a_moment_only(running: Running) -> None:
    store = await opened(running)
    store.may_answer.clear()
    store.store = {**store.store, "tables": 7}
    looks = [samples(running) for _ in range(3)]
    for found in await asyncio.wait_for(asyncio.gather(*looks), 20):
        assert of(found, "hybridps_store_tables") == 2, "the last that is known"
    assert (await running.get("/"))[0] == 200
    assert store.asked == 2, "all wait for one sample"
    store.may_answer.set()
    await asyncio.sleep(0.1)
    assert of(await samples(running), "hybridps_store_tables") == 7


async def test_many_looks_ask_the_engine_little(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(running)
    monkeypatch.setattr("time.thread_time", iter(range(1000)).__next__)
    for _ in range(5):
        await running.get("/metrics")
    assert store.asked == 2
    running.now += FRESH_MAX_S
    await running.get("/metrics")
    assert store.asked == 3


async def test_only_reading_is_served(running: Running) -> None:
    for path in ("/", "/livez", "/readyz", "/metrics"):
        assert (await running.get(path, "POST"))[0] == 405
    assert (await running.get("/etc/passwd"))[0] == 404


async def test_metrics_of_a_server_that_is_opening_its_store(running: Running) -> None:
    found = await samples(running)
    assert of(found, "hybridps_build_info", version="1.2.3", shard="0/1", loop="asyncio") == 1
    assert all(name.startswith("hybridps_") for name, _ in found)
    assert of(found, "hybridps_process_resident_memory_bytes") > 1e6


async def test_metrics_hold_tables_tiers_requests_and_limits(running: Running) -> None:
    await opened(running)
    running.metrics.observe("lookup", "ok", 0.0003, 0.0)
    running.metrics.observe("lookup", "BadInputError", 0.3, 0.2)
    running.metrics.reject("connections")
    found = await samples(running)
    assert of(found, "hybridps_requests_total", method="lookup", code="ok") == 1
    assert of(found, "hybridps_requests_total", method="lookup", code="BadInputError") == 1
    assert of(found, "hybridps_request_seconds_count", method="lookup") == 2
    assert of(found, "hybridps_request_seconds_bucket", method="lookup", le="0.0005") == 1
    assert of(found, "hybridps_wait_seconds_count", method="lookup") == 2
    assert of(found, "hybridps_wait_seconds_sum", method="lookup") == 0.2
    assert of(found, "hybridps_rejected_total", limit="connections") == 1
    assert of(found, "hybridps_connections") == 3
    assert of(found, "hybridps_inflight_bytes") == 4096
    assert of(found, "hybridps_waiting_pushes") == 3
    assert of(found, "hybridps_rows", table="item", tier="nvme") == 10
    assert of(found, "hybridps_storage_bytes", table="item", tier="dram") == 1000
    assert of(found, "hybridps_keys", table="item") == 40
    assert of(found, "hybridps_cache_hits_total", table="item") == 30
    assert of(found, "hybridps_store_dram_limit") == 8000
    assert of(found, "hybridps_store_device_reads_total") == 7
    assert of(found, "hybridps_keys", table=HOSTILE) == 0


async def test_no_family_is_told_twice(running: Running) -> None:
    await opened(running)
    running.metrics.observe("lookup", "ok", 0.1, 0.0)
    text = (await running.get("/metrics"))[1]
    kinds = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(kinds) == len(set(kinds))


class Reader(HTMLParser):
    """Checks that tags nest, and keeps text and tag names."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        for _, value in attrs:
            assert not (value or "").startswith(("http:", "https:", "//", "javascript:"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


async def test_the_page_shows_tables_escaped_and_fetches_nothing(running: Running) -> None:
    await opened(running)
    running.metrics.observe("lookup", "ok", 0.1, 0.0)
    status, text, headers = await running.get("/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "script" not in reader.tags
    assert HOSTILE in reader.text, "escaped, it is text"
    for shown in ("ready", "hps://h:1", "75.00%", "2.0 KiB of 7.8 KiB", "calls of lookup"):
        assert shown in reader.text
    assert 'http-equiv="refresh"' in text


async def test_a_browser_draws_the_last_minutes(running: Running) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    store = await opened(running)
    for _ in range(10):
        running.now += EVERY_S
        for name in ("unique_keys", "cache_hits"):
            store.store = {**store.store, name: store.store[name] + 5000}
        running.metrics.observe("lookup", "ok", 0.002, 0.0)
        running.ops.history.note(await running.sampler.latest())
    arguments = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", running.url)
    pipe = asyncio.subprocess.PIPE
    shown = await asyncio.create_subprocess_exec(
        browser, "--enable-logging=stderr", *arguments, stdout=pipe, stderr=pipe
    )
    out, told = await asyncio.wait_for(shown.communicate(), 60)
    reader = Reader()
    reader.feed(out.decode())
    assert reader.tags.count("svg") == 6
    assert reader.tags.count("path") >= 6, "a line in each chart that has one"
    assert "1k" in reader.text, "of keys a second"
    assert "Refused to" not in told.decode(), "nothing of the page meets its own policy"


async def test_the_page_answers_while_the_store_is_being_opened(running: Running) -> None:
    status, text, _ = await running.get("/")
    assert status == 200
    assert "starting" in text


async def test_rates_are_those_of_the_last_seconds(running: Running) -> None:
    store = await opened(running)
    await running.get("/")
    store.store = {**store.store, "unique_keys": 50 + 4000}
    running.now += 4.0
    text = (await running.get("/"))[1]
    assert "1,000/s" in text
    assert "Rates over 4.0 s" in text
    running.now += 60.0
    assert "Rates over 1 min 5 s" in (await running.get("/"))[1], "no sample since: from the start"


def test_people_can_compare_the_numbers() -> None:
    assert [page.size(n) for n in (0, 999, 1536, 200 << 20, 3 << 40)] == [
        *("0 B", "999 B", "1.5 KiB", "200 MiB", "3.0 TiB"),
    ]
    assert [page.duration(s) for s in (1.25, 125, 7500, 200_000)] == [
        *("1.2 s", "2 min 5 s", "2 h 5 min", "2 d 7 h"),
    ]
    assert page.ratio(0, 0) == "-"
