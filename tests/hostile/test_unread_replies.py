"""Goal: whoever asks for much and reads little costs a server a few mebibytes, not the answer, and
others nothing. Method: clients that hold the socket themselves, and a real server on both loops;
the memory of its process, and what it says is in flight."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.raw import RawClient
from support.server import ServerProcess
from support.system import rss_bytes

MIB = 1 << 20
DIM = 64
# 60 MiB of reply, 1.9 MiB of call.
KEYS = np.arange(60 * MIB // (4 * DIM) - 100, dtype=np.uint64)
# Three mebibytes and a piece, the socket's own, and the call.
HELD_MAX = 8 * MIB


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    room = {"HYBRIDPS_INFLIGHT": "2GiB", "HYBRIDPS_FRAME_LIMIT": "64MiB"}
    with ServerProcess(tmp_path / "d", "--loop", request.param, dram="64MiB", **room) as running:
        yield running
        assert [event for event in running.events() if event["level"] == "error"] == []
        assert running.stop() == 0


@pytest.fixture
def other(server: ServerProcess) -> Iterator[RawClient]:
    """A client that behaves."""
    with RawClient(server.address, 1) as client:
        yield client


@pytest.fixture
def table(other: RawClient) -> int:
    return other.create_table("t", DIM)


def ask(client: RawClient, table: int) -> int:
    return client.send(client.connection.lookup([(table, KEYS)], False))


def in_flight(server: ServerProcess) -> int:
    lines = server.http("/metrics")[1].splitlines()
    (line,) = [x for x in lines if x.startswith("hybridps_inflight_bytes ")]
    return int(float(line.split()[1]))


def wait_until_nothing_is_in_flight(server: ServerProcess) -> None:
    deadline = time.monotonic() + 20
    while in_flight(server):
        assert time.monotonic() < deadline, f"{in_flight(server)} bytes are held"
        time.sleep(0.05)


def check_served(other: RawClient, table: int) -> None:
    for keys in (range(10), range(20_000)):
        answer = other.answer(other.lookup(table, keys))
        assert answer.kind == "rows"
        assert len(answer.rows[0][0]) == 4 * DIM * len(keys)


def deaf_clients(server: ServerProcess, count: int) -> list[RawClient]:
    return [RawClient(server.address, 2 + n, receive_bytes=1 << 18) for n in range(count)]


def test_clients_that_read_nothing_and_then_vanish(
    server: ServerProcess, other: RawClient, table: int
) -> None:
    """Ten answers of 60 MiB, of which nobody takes a byte."""
    check_served(other, table)
    before = rss_bytes(server.process.pid)
    deaf = deaf_clients(server, 10)
    for client in deaf:
        ask(client, table)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        check_served(other, table)
        used = rss_bytes(server.process.pid) - before
        assert used < len(deaf) * HELD_MAX + 16 * MIB, f"{used >> 20} MiB"
    assert in_flight(server) > len(deaf) * 55 * MIB
    for client in deaf:
        client.socket.close()
    wait_until_nothing_is_in_flight(server)
    check_served(other, table)


def test_a_client_that_reads_slowly_gets_it_all(
    server: ServerProcess, other: RawClient, table: int
) -> None:
    before = rss_bytes(server.process.pid)
    (slow,) = deaf_clients(server, 1)
    question = ask(slow, table)
    for n in range(40):
        buffer = memoryview(slow.connection.get_buffer(1 << 18))
        count = slow.socket.recv_into(buffer)
        del buffer
        assert slow.connection.received(count) == []
        time.sleep(0.02)
        if n % 10 == 0:
            check_served(other, table)
            used = rss_bytes(server.process.pid) - before
            assert used < HELD_MAX + 16 * MIB, f"{used >> 20} MiB"
    answer = slow.answer(question)
    assert not np.frombuffer(answer.rows[0][0], np.float32).any()
    assert len(answer.rows[0][0]) == 4 * DIM * len(KEYS)
    wait_until_nothing_is_in_flight(server)
    slow.socket.close()


def test_clients_that_vanish_in_the_middle(
    server: ServerProcess, other: RawClient, table: int
) -> None:
    for n in range(20):
        (client,) = deaf_clients(server, 1)
        ask(client, table)
        with contextlib.suppress(ConnectionError):
            left = n * MIB // 2
            while left > 0:
                left -= len(client.socket.recv(1 << 18))
        client.socket.close()
    check_served(other, table)
    wait_until_nothing_is_in_flight(server)


def test_sigterm_completes_what_is_half_sent(server: ServerProcess, table: int) -> None:
    (slow,) = deaf_clients(server, 1)
    question = ask(slow, table)
    deadline = time.monotonic() + 20
    while in_flight(server) < 55 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.process.terminate()
    time.sleep(0.3)
    answer = slow.answer(question)
    assert answer.kind == "rows"
    assert len(answer.rows[0][0]) == 4 * DIM * len(KEYS)
    assert server.wait() == 0
    slow.socket.close()
