"""Goal: a lost connection, a slow server or no server at all never costs or doubles a push.

Method: a proxy between client and server loses answers with their connections; the rows then tell
how often each push was applied. Blocking and asyncio client alike.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import Servers, connect, fresh_name, needs_server
from support.proxy import Proxy
from support.server import ServerProcess

import hybridps as hps

pytestmark = needs_server
ONES = np.ones((2, 2), np.float32)


@pytest.fixture(params=["tcp", "tcp-aio"])
def kind(request: pytest.FixtureRequest) -> str:
    """A client."""
    return str(request.param)


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    """A proxy before the server that all tests share."""
    host, _, port = servers.url("tcp").removeprefix("hps://").rpartition(":")
    with Proxy((host, int(port))) as proxy:
        yield proxy


@pytest.fixture
def ps(kind: str, proxy: Proxy) -> Iterator[Any]:
    """A client behind the proxy."""
    with connect(kind, proxy.url, timeout=5.0) as client:
        yield client


@pytest.fixture
def table(ps: Any) -> Any:
    """Rows start at zero and fall by the gradient."""
    return ps.create_table(hps.TableSpec(fresh_name(), 2, hps.SGD(1.0), hps.Zeros()))


def test_a_push_whose_answer_was_lost_is_applied_once(table: Any, proxy: Proxy) -> None:
    for number in range(1, 11):
        proxy.lose_answers(2)
        table.apply_gradients([1, 2], ONES)
        np.testing.assert_array_equal(table.lookup([1, 2]), -number * ONES)
    assert proxy.connections >= 21


def test_a_scatter_whose_answer_was_lost_is_applied_once(table: Any, proxy: Proxy) -> None:
    proxy.lose_answers(2)
    table.scatter_add([1, 2, 1], np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(table.lookup([1, 2]), [[2, 2], [1, 1]])


def test_an_assign_whose_answer_was_lost_does_not_undo_later_pushes(
    table: Any, proxy: Proxy
) -> None:
    proxy.lose_answers(1)
    table.assign([1, 2], 5 * ONES)
    table.apply_gradients([1, 2], ONES)
    np.testing.assert_array_equal(table.lookup([1, 2]), 4 * ONES)


@pytest.mark.parametrize("verb", ["lookup", "lookup_or_insert", "stats", "size", "table"])
def test_reads_are_asked_again(ps: Any, table: Any, proxy: Proxy, verb: str) -> None:
    table.lookup_or_insert([1])
    proxy.lose_answers(1)
    match verb:
        case "lookup":
            assert not table.lookup([1]).any()
        case "lookup_or_insert":
            assert not table.lookup_or_insert([1]).any()
        case "stats":
            assert table.stats()["keys"] == 1
        case "size":
            assert table.size() == 1
        case _:
            assert ps.table(table.name).name == table.name


def test_connections_that_die_idle_are_made_anew(table: Any, proxy: Proxy) -> None:
    for number in range(1, 6):
        proxy.cut()
        time.sleep(0.02)
        table.apply_gradients([1, 2], ONES)
        np.testing.assert_array_equal(table.lookup([1, 2]), -number * ONES)


def test_a_slow_server_is_a_deadline(table: Any, proxy: Proxy) -> None:
    proxy.stall(on=True)
    started = time.monotonic()
    with pytest.raises(hps.DeadlineError, match=r"lookup.*0\.2 s.*timeout=") as caught:
        table.lookup([1], timeout=0.2)
    assert 0.15 < time.monotonic() - started < 3
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(hps.DeadlineError, match="apply_gradients"):
        table.apply_gradients([1, 2], ONES, timeout=0.2)
    proxy.stall(on=False)
    # The push was applied, its late answer harms nobody.
    table.apply_gradients([1, 2], ONES)
    np.testing.assert_array_equal(table.lookup([1, 2]), -2 * ONES)


def test_no_server_is_named_with_the_remedy(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        hps.UnavailableError, match=rf"127\.0\.0\.1:{port}.*hybridps\.server"
    ) as caught:
        connect(kind, f"hps://127.0.0.1:{port}", timeout=0.3)
    assert isinstance(caught.value, ConnectionError)
    with pytest.raises(hps.UnavailableError, match=r"absent\.sock"):
        connect(kind, "hps+unix:///tmp/absent.sock", timeout=0.2)


def test_a_server_that_never_answers_hello(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"hps://127.0.0.1:{listener.getsockname()[1]}"
        # Time enough to connect, on any machine; hello is waited for a quarter of it at first.
        with pytest.raises(hps.UnavailableError, match="timed out"):
            connect(kind, url, timeout=2.0)


def test_what_is_no_server_of_ours(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(100):
                try:
                    sock, _ = listener.accept()
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
                    sock.close()
                except OSError:
                    return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"hps://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(hps.UnavailableError):
            connect(kind, url, timeout=0.5)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_server_that_went_away_is_unavailable_until_it_is_back(kind: str, tmp_path: Path) -> None:
    spec = hps.TableSpec("item", 2, hps.SGD(1.0), hps.Zeros())
    with ServerProcess(tmp_path / "data") as server:
        url = server.url
        with connect(kind, url) as ps:
            table = ps.create_table(spec)
            table.apply_gradients([1, 2], ONES)
            server.kill()
            with pytest.raises(hps.UnavailableError, match="no server answers"):
                table.lookup([1], timeout=0.3)
            again = []

            def restart() -> None:
                time.sleep(0.3)
                listen = url.removeprefix("hps://")
                again.append(ServerProcess(tmp_path / "data2", "--listen", listen))

            thread = threading.Thread(target=restart)
            thread.start()
            try:
                # This waits for the new server, which has another directory: no tables.
                assert ps.tables(timeout=30) == []
            finally:
                thread.join()
                again[0].close()


def test_shards_must_be_listed_whole_and_in_order(kind: str, servers: Servers) -> None:
    first, second = servers.url("shards").removeprefix("hps://").split(",")
    for wrong in (first, f"{second},{first}"):
        with pytest.raises(hps.ConfigError, match=r"shard [01]/2"):
            connect(kind, f"hps://{wrong}")
    with connect(kind, f"hps://{first},{second}") as ps:
        ps.tables()


def test_many_threads_share_a_client(servers: Servers) -> None:
    with hps.connect(servers.url("shards")) as ps:
        table = ps.create_table(hps.TableSpec(fresh_name(), 2, hps.SGD(1.0), hps.Zeros()))
        errors: list[Exception] = []

        def work(number: int) -> None:
            try:
                for _ in range(25):
                    table.apply_gradients([number, 1000], ONES)
                    assert table.lookup(number).tolist() != [0, 0]
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        np.testing.assert_array_equal(table.lookup(range(8)), np.full((8, 2), -25, np.float32))
        np.testing.assert_array_equal(table.lookup(1000), [-200, -200])


def test_many_calls_in_flight_keep_their_order(servers: Servers) -> None:
    async def main() -> None:
        async with hps.aio.connect(servers.url("shards")) as ps:
            spec = hps.TableSpec(fresh_name(), 2, hps.SGD(1.0), hps.Zeros())
            table = await ps.create_table(spec)
            calls: list[Any] = []
            for _ in range(200):
                calls += [table.apply_gradients([1, 2], ONES), table.lookup([1, 2])]
            replies = await asyncio.gather(*calls)
            for number, rows in enumerate(replies[1::2], 1):
                np.testing.assert_array_equal(rows, -number * ONES)

    asyncio.run(main())


def in_child(function: Any) -> int:
    """Exit code of a forked child that runs `function`: 0 when it returns True."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_is_a_client_of_its_own(servers: Servers) -> None:
    with hps.connect(servers.url("shards"), client_id=fresh_name()) as ps:
        table = ps.create_table(hps.TableSpec(fresh_name(), 2, hps.SGD(1.0), hps.Zeros()))
        table.apply_gradients([1, 2], ONES)

        def child() -> bool:
            table.apply_gradients([1, 2], ONES)
            return bool((table.lookup([1, 2]) == -2 * ONES).all())

        assert in_child(child) == 0
        # The parent's session and connection are as they were.
        table.apply_gradients([1, 2], ONES)
        np.testing.assert_array_equal(table.lookup([1, 2]), -3 * ONES)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_of_a_local_store_is_refused(tmp_path: Path) -> None:
    with hps.connect(f"local:{tmp_path}", dram="8MiB", nvme="64MiB") as ps:
        table = ps.create_table(hps.TableSpec("item", 2, hps.SGD(1.0), hps.Zeros()))

        def child() -> bool:
            try:
                table.lookup(1)
            except hps.UnavailableError as error:
                return "fork" in str(error)
            return False

        assert in_child(child) == 0
        assert not table.lookup(1).any()
