"""Goal: the cold tier as users meet it: in the process, and behind a server. Method: more rows than
`nvme` holds, compared with what was assigned, over a restart; directories that are not the store's.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import hybridps as hps
from tests.support.server import ServerProcess

DIM = 256
ROWS = 44_000
STEP = 2_000
BUDGETS = {"dram": "8MiB", "nvme": "64MiB"}


def rows(keys: np.ndarray) -> np.ndarray:
    """What key k is assigned: k, in every column."""
    return np.repeat(keys.astype(np.float32)[:, None], DIM, axis=1)


def fill(table: hps.Table) -> None:
    """Assigns all keys, some at a time."""
    for first in range(0, ROWS, STEP):
        keys = np.arange(first, first + STEP, dtype=np.uint64)
        table.assign(keys, rows(keys))


def check(table: hps.Table) -> None:
    """Every row is what was assigned."""
    for first in range(0, ROWS, STEP):
        keys = np.arange(first, first + STEP, dtype=np.uint64)
        found, is_found = table.lookup(keys, return_found=True)
        assert is_found.all()
        np.testing.assert_array_equal(found, rows(keys))


def until(what: str, is_so: Callable[[], bool]) -> None:
    """Waits for something that happens in the background."""
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_local_store_keeps_more_rows_than_nvme_holds(tmp_path: Path) -> None:
    url, cold = f"local:{tmp_path / 'data'}", tmp_path / "cold"
    with hps.connect(url, cold=cold, cold_cap="64MiB", **BUDGETS) as ps:
        table = ps.create_table(hps.TableSpec("t", dim=DIM, optimizer=hps.SGD(learning_rate=1.0)))
        fill(table)
        until("rows go down", lambda: ps.stats()["rows_cold"] > 1000)
        found = table.inspect(np.arange(ROWS, dtype=np.uint64))
        assert {row.tier for row in found} == {"dram", "nvme", "cold"}
        assert max(abs(row.norm - row.key * DIM**0.5) / (row.norm + 1) for row in found) < 1e-5
        check(table)
        stats = ps.stats()
        assert 0 < stats["cold_reads"] <= stats["device_reads"]
        assert stats["cold_limit"] == 64 << 20
        assert 0 < stats["cold_bytes"] <= 64 << 20
        assert stats["rows_dram"] + stats["rows_nvme"] + stats["rows_cold"] == ROWS
        assert table.stats()["rows_cold"] == stats["rows_cold"]
        taken = sum(file.stat().st_blocks * 512 for file in cold.iterdir())
        assert taken <= 64 << 20
    with pytest.raises(hps.ConfigError, match=f"cold directory, last seen at {cold}"):
        hps.connect(url, **BUDGETS)
    with pytest.raises(hps.ConfigError, match="holds no cold rows"):
        hps.connect(url, cold=tmp_path / "other", cold_cap="64MiB", **BUDGETS)
    with pytest.raises(hps.ConfigError, match="lie in one another"):
        hps.connect(url, cold=tmp_path / "data" / "cold", cold_cap="64MiB", **BUDGETS)
    with hps.connect(url, cold=cold, cold_cap="64MiB", **BUDGETS) as ps:
        check(ps.table("t"))


def test_a_cold_directory_that_was_never_needed_may_be_left_away(tmp_path: Path) -> None:
    url, cold = f"local:{tmp_path / 'data'}", tmp_path / "cold"
    keys = np.arange(100, dtype=np.uint64)
    with hps.connect(url, **BUDGETS) as ps:
        table = ps.create_table(hps.TableSpec("t", dim=DIM, optimizer=hps.SGD(learning_rate=1.0)))
        table.assign(keys, rows(keys))
    for settings in ({"cold": cold, "cold_cap": "64MiB"}, {}, {"cold": cold, "cold_cap": "16MiB"}):
        with hps.connect(url, **BUDGETS, **settings) as ps:
            np.testing.assert_array_equal(ps.table("t").lookup(keys), rows(keys))
            assert ps.stats()["rows_cold"] == 0


def test_two_full_disks_refuse_new_rows_and_serve_all_others(tmp_path: Path) -> None:
    url, cold = f"local:{tmp_path / 'data'}", tmp_path / "cold"
    with hps.connect(url, cold=cold, cold_cap="16MiB", **BUDGETS) as ps:
        table = ps.create_table(hps.TableSpec("t", dim=DIM, optimizer=hps.SGD(learning_rate=1.0)))
        kept = 0
        refused: hps.StoreFullError | None = None
        while refused is None:
            keys = np.arange(kept, kept + STEP, dtype=np.uint64)
            try:
                table.assign(keys, rows(keys))
                kept += STEP
            except hps.StoreFullError as error:
                refused = error
        assert "raise nvme or cold_cap" in str(refused)
        until("rows go down", lambda: ps.stats()["rows_cold"] > 1000)
        for first in range(0, kept, STEP):
            keys = np.arange(first, first + STEP, dtype=np.uint64)
            np.testing.assert_array_equal(table.lookup(keys), rows(keys))
        taken = {
            path: sum(f.stat().st_blocks * 512 for f in path.rglob("*") if f.is_file())
            for path in (tmp_path / "data", cold)
        }
        assert taken[cold] <= 16 << 20
        assert taken[tmp_path / "data"] <= 64 << 20
        table.remove(np.arange(0, STEP * 4, dtype=np.uint64))
        keys = np.arange(ROWS * 20, ROWS * 20 + STEP, dtype=np.uint64)
        table.assign(keys, rows(keys))


def test_a_server_keeps_more_rows_than_nvme_holds(tmp_path: Path) -> None:
    flags = ["--cold", str(tmp_path / "cold"), "--cold-cap", "64MiB"]
    flags += ["--dram", "8MiB", "--nvme", "64MiB"]
    with ServerProcess(tmp_path / "data", *flags) as server:
        with hps.connect(server.url) as ps:
            spec = hps.TableSpec("t", dim=DIM, optimizer=hps.SGD(learning_rate=1.0))
            fill(ps.create_table(spec))
            until("rows go down", lambda: ps.stats()["rows_cold"] > 1000)
        metrics = server.http("/metrics")[1]
        assert 'hybridps_rows{table="t",tier="cold"}' in metrics
        assert "hybridps_store_cold_limit 67108864" in metrics
        assert "Cold" in server.http("/")[1]
        assert server.stop() == 0
    with ServerProcess(tmp_path / "data", *flags) as server, hps.connect(server.url) as ps:
        check(ps.table("t"))
