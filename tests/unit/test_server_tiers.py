"""Goal: small calls leave the event loop as soon as rows live beyond DRAM, and return to it after.
Method: the watch of a server over counters made by hand."""

import asyncio
from pathlib import Path

import pytest

from hybridps.config import load
from hybridps.server import server as module
from hybridps.server.server import Server


class Store:
    def __init__(self) -> None:
        self.rows = {"rows_nvme": 0, "rows_cold": 0}

    def stats(self) -> dict[str, int]:
        return dict(self.rows)


class Listener:
    def __init__(self) -> None:
        self.told: list[bool] = []

    def allow_waits(self, may_wait: bool) -> None:
        self.told.append(may_wait)


async def test_waits_are_allowed_only_while_rows_live_beyond_dram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_EVERY_S", 0.001)
    server, store, listener = (
        Server(load(["--data", str(tmp_path)], {}), "asyncio"),
        Store(),
        Listener(),
    )
    watch = asyncio.create_task(server._watch_tiers(store, listener))
    for tier, rows in (("rows_nvme", 1), ("rows_nvme", 0), ("rows_cold", 5), ("rows_cold", 0)):
        store.rows[tier] = rows
        await asyncio.sleep(0.05)
        assert listener.told[-1] is (rows > 0)
    watch.cancel()
    await server.stop()
