"""Goal: each limit of the config is kept, told and counted, and others are served meanwhile.
Method: a server with small limits, and clients that go beyond them."""

import socket
import time
from pathlib import Path

import capnp
import numpy as np
import pytest
from support.raw import RawClient
from support.server import ServerProcess
from support.stock import stock_session
from support.system import rss_bytes

import hybridps as hps

MIB = 1 << 20
TOO_MANY = "BadInputError: the call names 101 keys and this server takes 100 .* raise keys_limit"


def rejected(server: ServerProcess, limit: str) -> int:
    name = f'hybridps_rejected_total{{limit="{limit}"}} '
    lines = [x for x in server.http("/metrics")[1].splitlines() if x.startswith(name)]
    return int(float(lines[0].removeprefix(name))) if lines else 0


async def test_keys_a_call(tmp_path: Path) -> None:
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d", HYBRIDPS_KEYS_LIMIT="100") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("t", 2)
                await ps.lookup(table, range(100), 2)
                with pytest.raises(capnp.KjException, match=TOO_MANY):
                    await ps.lookup(table, range(101), 2)
                zeros = np.zeros((101, 2), np.float32)
                with pytest.raises(capnp.KjException, match=TOO_MANY):
                    await ps.apply_gradients(table, range(101), zeros)
                assert (await ps.counters(table))["keys"] == 0


@pytest.mark.parametrize(
    "limits",
    [{"HYBRIDPS_KEYS_LIMIT": "100"}, {"HYBRIDPS_FRAME_LIMIT": "64KiB"}],
    ids=["keys", "frame"],
)
async def test_our_clients_cut_reads_to_what_the_servers_take(
    tmp_path: Path, limits: dict[str, str]
) -> None:
    """The smallest limit of all servers holds; batches are of any size, both ways."""
    rows = np.arange(3000 * 16, dtype=np.float32).reshape(3000, 16)
    keys = np.arange(3000)
    with (
        ServerProcess(tmp_path / "a", "--shard", "0/2") as first,
        ServerProcess(tmp_path / "b", "--shard", "1/2", **limits) as second,
    ):
        url = f"{first.url},{second.url.removeprefix('hps://')}"
        with hps.connect(url, timeout=60.0) as ps:
            for name in ("item", "user"):
                table = ps.create_table(hps.TableSpec(name, 16, hps.SGD(0.5), hps.Zeros()))
                assert not table.lookup_or_insert(keys).any()
                table.assign(keys, rows)
            got, found = table.lookup(keys, return_found=True)
            np.testing.assert_array_equal(got, rows)
            assert found.all()
            both = ps.lookup({"item": keys[::-1], "user": keys})
            np.testing.assert_array_equal(both["item"], rows[::-1])
            np.testing.assert_array_equal(both["user"], rows)
        async with hps.aio.connect(url, timeout=60.0) as aps:
            np.testing.assert_array_equal(await aps.table("item").lookup(keys), rows)


async def test_a_frame_above_the_limit_ends_its_connection_only(tmp_path: Path) -> None:
    settings = {"HYBRIDPS_FRAME_LIMIT": "64KiB"}
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d", **settings) as server:
            async with stock_session(server.address) as good, stock_session(server.address) as bad:
                table = await good.create_table("t", 2)
                with pytest.raises(capnp.KjException):
                    await bad.lookup(table, range(10_000), 2)
                assert not (await good.lookup(table, range(1000), 2)).any()


def test_connections_beyond_the_limit_are_refused_and_a_freed_place_is_given(
    tmp_path: Path,
) -> None:
    with ServerProcess(tmp_path / "d", HYBRIDPS_CONNECTIONS="3") as server:
        clients = [RawClient(server.address, session=n + 1) for n in range(3)]
        with pytest.raises(OSError, match=r"connections|closed|reset"):
            RawClient(server.address, session=9)
        assert rejected(server, "connections") == 1
        clients.pop().socket.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                clients.append(RawClient(server.address, session=9))
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        for client in clients:
            client.socket.close()


def ask_on(client: RawClient, table: int) -> None:
    for _ in range(2000):
        client.lookup(table, range(8192))


def test_replies_that_nobody_reads_stay_within_the_bound(tmp_path: Path) -> None:
    """2000 calls of 2 MiB replies each, never read: the memory of the server does not follow."""
    with ServerProcess(tmp_path / "d", dram="64MiB", HYBRIDPS_INFLIGHT="32MiB") as server:
        with RawClient(server.address, 1) as reader:
            table = reader.create_table("t", 64)
        before = rss_bytes(server.process.pid)
        with RawClient(server.address, 2, receive_bytes=65536) as deaf:
            deaf.socket.settimeout(0.5)
            with pytest.raises(TimeoutError):  # The server stops reading, so that we cannot send.
                ask_on(deaf, table)
            assert rss_bytes(server.process.pid) - before < 128 * MIB
            with RawClient(server.address, 3) as other:
                answer = other.answer(other.lookup(table, range(100)))
                assert answer.kind == "rows"


def test_garbage_ends_its_connection_only(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    with ServerProcess(tmp_path / "d") as server, RawClient(server.address, 1) as good:
        table = good.create_table("t", 2)
        for _ in range(50):
            with socket.create_connection(server.address, 5) as bad:
                bad.sendall(random.bytes(int(random.integers(1, 300))))
                bad.shutdown(socket.SHUT_WR)
                bad.settimeout(10)
                while bad.recv(4096):
                    pass
        assert good.answer(good.lookup(table, range(10))).kind == "rows"
        assert [e for e in server.events() if e["level"] == "error"] == []
        assert server.stop() == 0


def test_a_crowd_that_connects_and_leaves_does_no_harm(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d") as server:
        for _ in range(200):
            socket.create_connection(server.address, 5).close()
        with RawClient(server.address, 1) as good:
            assert good.create_table("t", 2) > 0
        assert server.stop() == 0
