"""Goal: SIGTERM ends a server in good order, whatever it is doing, and a restart has everything.
Method: real processes in the middle of training; the counting model against the restarted one."""

import asyncio
import signal
import socket
import time
from pathlib import Path

import capnp
import numpy as np
import pytest
from support.counting import Trainer, check, trainers
from support.engine import needs_engine
from support.raw import RawClient
from support.server import ServerProcess
from support.stock import StockSession, stock_session


async def train_until_stopped(server: ServerProcess, crew: list[Trainer], seconds: float) -> int:
    """Trains, sends SIGTERM in the middle, and returns the exit code."""
    never = asyncio.Event()
    work = [asyncio.create_task(t.train(server.address, never)) for t in crew]
    await asyncio.sleep(seconds)
    server.send(signal.SIGTERM)
    code = await asyncio.to_thread(server.wait)
    await asyncio.gather(*work)
    return code


@needs_engine
@pytest.mark.parametrize("durability", ["none", "interval", "always"])
async def test_sigterm_in_the_middle_of_training_loses_nothing(
    tmp_path: Path, durability: str
) -> None:
    crew = trainers(count=3, columns=4, keys=2000, batch=64, seed=1)
    async with capnp.kj_loop():
        for _ in range(3):
            with ServerProcess(tmp_path / "d", "--durability", durability) as server:
                await check(server.address, crew)
                assert await train_until_stopped(server, crew, 0.7) == 0
                assert server.events()[-1]["event"] == "stopped"
        with ServerProcess(tmp_path / "d") as server:
            assert "tables=1" in server.ready_line
            await check(server.address, crew)
            for trainer in crew:
                await trainer.settle(server.address)
            await check(server.address, crew)
    assert all(trainer.pushes > 50 for trainer in crew)


async def test_sigterm_answers_calls_in_flight(tmp_path: Path) -> None:
    """A call that the server has read when SIGTERM comes is answered, not cut off."""
    rows, dim = 40_000, 64
    keys = list(range(rows))
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d", dram="64MiB") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("t", dim)
                await ps.apply_gradients(table, keys[:1], np.full((1, dim), -3.0, np.float32))
                before = time.monotonic()
                await ps.lookup(table, keys, dim)
                one_call = time.monotonic() - before
                call = asyncio.create_task(ps.lookup(table, keys, dim))
                await asyncio.sleep(one_call / 4)
                server.send(signal.SIGTERM)
                values = await call
                assert (values[0] == 3.0).all()
                assert not values[1:].any()
            assert await asyncio.to_thread(server.wait) == 0


def wait_for_readiness(server: ServerProcess, status: int) -> None:
    deadline = time.monotonic() + 10
    while server.http("/readyz")[0] != status:
        assert time.monotonic() < deadline, f"/readyz is not {status} after 10 s"
        time.sleep(0.01)


def test_a_client_that_does_not_read_holds_a_drain_only_so_long(tmp_path: Path) -> None:
    """While a reply waits for its reader the server is not ready, alive, and takes no calls."""
    rows, dim = 100_000, 64  # 24 MiB: far more than the sockets between us take.
    with (
        ServerProcess(tmp_path / "d", dram="64MiB", HYBRIDPS_DRAIN="2") as server,
        RawClient(server.address, session=1, receive_bytes=65536) as client,
    ):
        table = client.create_table("t", dim)
        client.lookup(table, range(rows))
        time.sleep(0.5)
        before = time.monotonic()
        server.send(signal.SIGTERM)
        wait_for_readiness(server, 503)
        assert server.http("/readyz") == (503, "draining\n")
        assert server.http("/livez") == (200, "ok\n")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(server.address, 5)
        assert server.wait() == 0
        assert 1.5 < time.monotonic() - before < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with ServerProcess(tmp_path / "d") as server:
        before = time.monotonic()
        server.send(number)
        assert server.wait() == 0
        assert time.monotonic() - before < 10


async def test_an_open_idle_connection_does_not_hold_the_server(tmp_path: Path) -> None:
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                server.send(signal.SIGTERM)
                assert await asyncio.to_thread(server.wait) == 0
                with pytest.raises(capnp.KjException):
                    await ps.hello(1)


@needs_engine
async def test_a_restart_keeps_tables_settings_and_rows_bit_for_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    keys = [int(k) for k in random.integers(0, 2**63, 500, dtype=np.int64)]
    adam = {"learningRate": 0.125, "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}}
    normal = {"normal": {"mean": 0.0, "std": 0.01}}
    changes = {"optimizer": adam, "initializer": normal, "seed": 5}

    async def push(ps: StockSession, table: int) -> None:
        gradients = random.normal(size=(len(keys), 8)).astype(np.float32)
        await ps.apply_gradients(table, keys, gradients)

    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("item", 8, **changes)
                await ps.create_table("empty", 2)
                await push(ps, table)
                await ps.remote.setLearningRate(table=table, learningRate=0.5)
                await push(ps, table)
                before = await ps.lookup(table, keys, 8)
            assert server.stop() == 0
        with ServerProcess(tmp_path / "d") as server:
            assert "tables=2" in server.ready_line
            async with stock_session(server.address) as ps:
                assert await ps.hello(1) == 2
                info = (await ps.remote.table("item")).table
                assert info.id == table
                assert info.spec.optimizer.learningRate == 0.5
                assert (await ps.lookup(table, keys, 8)).tobytes() == before.tobytes()
                await push(ps, table)
                after = await ps.lookup(table, keys, 8)
                assert np.isfinite(after).all()
                assert not np.array_equal(after, before)
                await ps.remote.dropTable("empty")
            assert server.stop() == 0
        with ServerProcess(tmp_path / "d") as server:
            assert "tables=1" in server.ready_line


@needs_engine
async def test_flush_then_stop_leaves_no_work_for_the_next_start(tmp_path: Path) -> None:
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("t", 4)
                await ps.apply_gradients(table, range(100), np.full((100, 4), -1, np.float32))
                await ps.remote.flush()
                assert (await ps.counters(table))["keys"] == 100
            assert server.stop() == 0
        with ServerProcess(tmp_path / "d") as server:
            async with stock_session(server.address) as ps:
                assert (await ps.lookup(table, range(100), 4) == 1).all()
