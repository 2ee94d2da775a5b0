"""Goal: a table many times larger than `--dram` is trained right within the memory that was given,
without help of the page cache, and the server's own counters agree with the kernel's.
Method: one real server, watched through /proc and mincore. `TEST_DRAM_MIB=512` is the full size."""

import os
from collections.abc import Iterator
from pathlib import Path

import capnp
import numpy as np
import pytest
from support.engine import needs_engine
from support.server import ServerProcess
from support.stock import StockSession, stock_session
from support.system import device_bytes, page_cache_bytes, peak_rss_bytes

MIB = 1 << 20
DRAM_MIB = int(os.environ.get("TEST_DRAM_MIB", "32"))
# The interpreter, its libraries, and 64 MiB of requests and replies in flight.
BESIDE_DRAM_MIB = 200
PAGE_CACHE_MAX_MIB = 64
DIM = 64
ROWS = 4 * DRAM_MIB * MIB // (2 * DIM * 4)
BATCH = 16_384
RATE, EPS = np.float32(0.5), np.float32(1e-10)


def batches(order: np.ndarray) -> Iterator[np.ndarray]:
    return (order[start : start + BATCH] for start in range(0, len(order), BATCH))


def gradients(keys: np.ndarray) -> np.ndarray:
    """A row of its own for each key, so that no row can stand in for another."""
    columns = np.arange(1, DIM + 1, dtype=np.float32)
    return (keys[:, None] % 997 + 1).astype(np.float32) * columns


def expected(keys: np.ndarray, pushes: int) -> np.ndarray:
    rows = np.zeros((len(keys), DIM), np.float32)
    squares, gradient = np.zeros_like(rows), gradients(keys)
    for _ in range(pushes):
        squares += gradient * gradient
        rows -= RATE * gradient / (np.sqrt(squares) + EPS)
    return rows


async def push_all(ps: StockSession, table: int, seed: int) -> None:
    for keys in batches(np.random.default_rng(seed).permutation(ROWS)):
        await ps.apply_gradients(table, keys.tolist(), gradients(keys))


@needs_engine
async def test_a_table_of_four_times_the_dram_is_right_and_bounded(tmp_path: Path) -> None:
    adagrad = {"adagrad": {"initialAccumulator": 0.0, "eps": float(EPS)}}
    optimizer = {"learningRate": float(RATE), **adagrad}
    settings = {"dram": f"{DRAM_MIB}MiB", "nvme": f"{64 + 16 * DRAM_MIB}MiB"}
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d", **settings) as server:
            pid = server.process.pid
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("big", DIM, optimizer=optimizer)
                for seed in (1, 2):
                    await push_all(ps, table, seed)
                for keys in batches(np.random.default_rng(3).permutation(ROWS)):
                    rows = await ps.lookup(table, keys.tolist(), DIM)
                    np.testing.assert_allclose(rows, expected(keys, 2), rtol=1e-6)
                counters = await ps.counters(table)
                of_store = await ps.counters()
            assert counters["keys"] == ROWS
            assert counters["rows_nvme"] > ROWS // 2
            assert counters["evictions"] > 0
            assert counters["probes"] <= counters["unique_keys"]
            assert counters["device_reads"] <= counters["cache_misses"]
            assert of_store["dram_bytes"] <= DRAM_MIB * MIB
            assert peak_rss_bytes(pid) <= (DRAM_MIB + BESIDE_DRAM_MIB) * MIB
            assert page_cache_bytes(tmp_path / "d") < PAGE_CACHE_MAX_MIB * MIB
            read, written = device_bytes(pid)
            assert of_store["device_bytes_read"] == pytest.approx(read, rel=0.05, abs=4 * MIB)
            assert of_store["device_bytes_written"] == pytest.approx(written, rel=0.05, abs=4 * MIB)
            assert server.stop() == 0
