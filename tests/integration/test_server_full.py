"""Goal: at the byte cap of its disk a server refuses what does not fit, in words, and loses and
damages nothing. Method: new rows until they are refused, then every row again, also restarted."""

from collections.abc import Callable
from pathlib import Path

import capnp
import numpy as np
from support.server import ServerProcess
from support.stock import StockSession, stock_session

MIB = 1 << 20
DIM, BATCH = 64, 4096
SETTINGS = {"dram": "8MiB", "nvme": "64MiB"}


def gradients(first: int) -> np.ndarray:
    keys = np.arange(first, first + BATCH, dtype=np.float32)
    return np.repeat(-(keys % 1000 + 1)[:, None], DIM, axis=1)


async def fill(
    ps: StockSession, table: int, rows_of: Callable[[int], np.ndarray]
) -> tuple[int, str]:
    """Pushes new keys until the server refuses; how many were taken, and what it said."""
    first = 0
    while first < 1 << 23:
        rows = rows_of(first)
        try:
            await ps.apply_gradients(table, range(first, first + len(rows)), rows)
        except capnp.KjException as error:
            return first, str(error)
        first += len(rows)
    raise AssertionError(f"{first} rows went in, and no cap was met")


async def check_rows(ps: StockSession, table: int, taken: int) -> None:
    for first in range(0, taken, BATCH):
        rows = await ps.lookup(table, range(first, first + BATCH), DIM)
        assert np.array_equal(rows, -gradients(first))
    assert not (await ps.lookup(table, range(taken, taken + BATCH), DIM)).any()


def disk_bytes(directory: Path) -> int:
    return sum(f.stat().st_blocks * 512 for f in directory.rglob("*") if f.is_file())


async def test_a_full_disk_cap_refuses_in_words_and_keeps_every_row(tmp_path: Path) -> None:
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d", **SETTINGS) as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("t", DIM)
                taken, told = await fill(ps, table, gradients)
                assert "StoreFullError: " in told
                assert "nvme" in told.lower()
                assert taken * DIM * 4 > 16 * MIB, "far below the cap"
                assert disk_bytes(tmp_path / "d") <= 64 * MIB
                await check_rows(ps, table, taken)
                assert (await ps.counters(table))["keys"] == taken
            assert server.stop() == 0
        assert disk_bytes(tmp_path / "d") <= 64 * MIB
        with ServerProcess(tmp_path / "d", **SETTINGS) as server:
            async with stock_session(server.address) as ps:
                await check_rows(ps, await ps.create_table("t", DIM), taken)
            assert server.stop() == 0


async def test_a_dram_that_the_index_would_pass_refuses_new_keys_only(tmp_path: Path) -> None:
    """Narrow rows: the index grows past 8 MiB long before the rows pass the disk's cap."""
    batch, dim = 65_536, 1
    ones = np.full((batch, dim), -1.0, np.float32)
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d", dram="8MiB", nvme="1GiB") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("t", dim)
                taken, told = await fill(ps, table, lambda _: ones)
                assert "StoreFullError: " in told
                assert "dram" in told.lower()
                assert taken > 2 * batch
                assert (await ps.lookup(table, range(batch), dim) == 1.0).all()
                await ps.apply_gradients(table, range(100), ones[:100])
                assert (await ps.lookup(table, range(100), dim) == 2.0).all()
                assert (await ps.counters())["dram_bytes"] <= 8 * MIB
            assert server.stop() == 0
