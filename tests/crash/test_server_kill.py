"""Goal: kill -9 at any moment loses no acknowledged push and doubles none; the next start serves.
Method: the counting model over real processes killed at seeded random moments. Every unknown push
is sent again, applied or not."""

import asyncio
import re
import signal
import time
from pathlib import Path

import capnp
import numpy as np
import pytest
from support.campaign import rounds
from support.counting import Trainer, check, trainers
from support.server import ServerProcess, command, environment

ROUNDS = rounds(4)
WAIT_S = 120.0


async def train_until_killed(server: ServerProcess, crew: list[Trainer], seconds: float) -> None:
    never = asyncio.Event()
    work = [asyncio.create_task(t.train(server.address, never)) for t in crew]
    await asyncio.sleep(seconds)
    server.kill()
    await asyncio.gather(*work)


async def kill_rounds(
    data: Path, crew: list[Trainer], moments: np.random.Generator, *arguments: str, **settings: str
) -> None:
    async with capnp.kj_loop():
        for _ in range(ROUNDS):
            with ServerProcess(data, *arguments, **settings) as server:
                await check(server.address, crew)
                await train_until_killed(server, crew, moments.uniform(0.05, 1.0))
        with ServerProcess(data, *arguments, **settings) as server:
            await check(server.address, crew)
            for trainer in crew:
                await trainer.settle(server.address)
            await check(server.address, crew)
            assert server.stop() == 0


@pytest.mark.parametrize("durability", ["process", "interval", "always"])
async def test_kill_in_the_middle_of_pushes_loses_nothing_acknowledged(
    tmp_path: Path, durability: str
) -> None:
    crew = trainers(count=4, columns=5, keys=2000, batch=64, seed=11)
    await kill_rounds(tmp_path / "d", crew, np.random.default_rng(11), "--durability", durability)
    assert all(trainer.pushes > 20 for trainer in crew)


async def test_kill_with_rows_beyond_dram_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """30,000 rows of 64 columns take 8 MiB without index or journal: rows live on both tiers."""
    crew = trainers(count=2, columns=64, keys=30_000, batch=1000, seed=12)
    await kill_rounds(tmp_path / "d", crew, np.random.default_rng(12), dram="8MiB", nvme="256MiB")


async def test_kill_while_rows_go_down_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """28,000 rows of 256 columns are more than 64 MiB of NVMe shall hold: the rest goes down."""
    crew = trainers(count=2, columns=256, keys=28_000, batch=1000, seed=16)
    moments = np.random.default_rng(16)
    flags = ("--cold", str(tmp_path / "cold"), "--cold-cap", "64MiB")
    budgets = {"dram": "8MiB", "nvme": "64MiB"}
    async with capnp.kj_loop():
        for _ in range(ROUNDS):
            with ServerProcess(tmp_path / "d", *flags, **budgets) as server:
                await check(server.address, crew)
                never = asyncio.Event()
                work = [asyncio.create_task(t.train(server.address, never)) for t in crew]
                await asyncio.to_thread(wait_for_cold_rows, server)
                await asyncio.sleep(moments.uniform(0.0, 0.5))
                server.kill()
                await asyncio.gather(*work)
        with ServerProcess(tmp_path / "d", *flags, **budgets) as server:
            await check(server.address, crew)
            for trainer in crew:
                await trainer.settle(server.address)
            await check(server.address, crew)
            assert server.stop() == 0


def wait_for_cold_rows(server: ServerProcess) -> None:
    """Returns when rows of the server have gone down."""
    end = time.monotonic() + WAIT_S
    gone = re.compile(r'^hybridps_rows\{.*tier="cold"\} [1-9]', re.MULTILINE)
    while not gone.search(server.http("/metrics")[1]):
        assert time.monotonic() < end, "no row went down"
        time.sleep(0.05)


async def test_kill_while_the_server_recovers_is_harmless(tmp_path: Path) -> None:
    crew = trainers(count=2, columns=4, keys=2000, batch=64, seed=13)
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            await train_until_killed(server, crew, 0.7)
        for delay_s in (0.2, 0.3, 0.4, 0.5):
            await kill_soon_after_start(tmp_path / "d", delay_s)
        with ServerProcess(tmp_path / "d") as server:
            await check(server.address, crew)
            for trainer in crew:
                await trainer.settle(server.address)
            await check(server.address, crew)


async def kill_soon_after_start(data: Path, delay_s: float) -> None:
    """Starts a server and kills it, ready or not."""
    arguments = ("--data", str(data), "--dram", "16MiB", "--nvme", "256MiB")
    process = await asyncio.create_subprocess_exec(
        *command(*arguments, "--listen", "127.0.0.1:0", "--ops", "off"),
        env=environment(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await asyncio.sleep(delay_s)
    process.kill()
    await process.wait()


async def test_kill_during_a_drain_is_harmless(tmp_path: Path) -> None:
    """The second signal ends the process at once: that is a crash, and crashes are safe."""
    crew = trainers(count=2, columns=4, keys=2000, batch=64, seed=14)
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            never = asyncio.Event()
            work = [asyncio.create_task(t.train(server.address, never)) for t in crew]
            await asyncio.sleep(0.7)
            server.send(signal.SIGTERM)
            server.send(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) in (0, 128 + signal.SIGTERM)
            await asyncio.gather(*work)
        with ServerProcess(tmp_path / "d") as server:
            await check(server.address, crew)


async def test_cut_connections_apply_every_push_once(tmp_path: Path) -> None:
    """The server lives; connections die with pushes in flight, and are made again."""
    crew = trainers(count=3, columns=3, keys=2000, batch=64, seed=15)
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            for _ in range(ROUNDS):
                never = asyncio.Event()
                work = [asyncio.create_task(t.train(server.address, never)) for t in crew]
                await asyncio.sleep(0.3)
                for task in work:
                    task.cancel()
                for result in await asyncio.gather(*work, return_exceptions=True):
                    assert result is None or isinstance(result, asyncio.CancelledError), result
                await check(server.address, crew)
            for trainer in crew:
                await trainer.settle(server.address)
            await check(server.address, crew)
    assert sum(trainer.duplicates for trainer in crew) > 0, "no cut caught a push in flight"
    assert all(trainer.pushes > 20 for trainer in crew)
