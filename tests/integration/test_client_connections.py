"""Goal: threads share a connection without waiting for each other; a signal inside a call, a call
that is given up and a peer that falls silent cost themselves and nothing else; a copy of a client
in another process works. Method: real sockets on loopback, a server that answers out of order, a
proxy that goes silent, real signals, real processes."""

import asyncio
import math
import multiprocessing
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import Servers, connect, fresh_name, needs_server
from support.held import HeldServer
from support.proxy import Proxy

import hybridps as hps
from hybridps import verbs
from hybridps.client.remote import RemoteTransport
from hybridps.client.urls import Address

pytestmark = needs_server
ONES = np.ones((2, 2), np.float32)


def held_lookup(transport: RemoteTransport, table: int, key: int) -> Any:
    call = verbs.Lookup([(table, np.array([key], np.uint64))], False)
    return transport.perform([(0, call)], 20.0)


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Runs `work` in threads; what they raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_have_calls_in_flight_side_by_side(tmp_path: Path, threads: int) -> None:
    with HeldServer(tmp_path / "data", hold=threads) as server:
        transport = RemoteTransport([Address(*server.address)], None, 20.0)
        transport.connect()

        def work(number: int) -> None:
            for _ in range(20):
                # Answered only when the others have asked too, and in the opposite order.
                (((rows, _),),) = held_lookup(transport, server.store.table, number)
                assert rows.shape == (1, 2)

        assert in_threads(threads, work) == []
        transport.close()


def test_closing_wakes_threads_that_wait(tmp_path: Path) -> None:
    with HeldServer(tmp_path / "data", hold=100) as server:
        transport = RemoteTransport([Address(*server.address)], None, 20.0)
        transport.connect()
        closer = threading.Timer(0.3, transport.close)
        closer.start()
        errors = in_threads(3, lambda n: held_lookup(transport, server.store.table, n))
        closer.join()
        assert [type(error) for error in errors] == [hps.UnavailableError] * 3


def test_a_deadline_of_one_thread_leaves_the_others(tmp_path: Path) -> None:
    with HeldServer(tmp_path / "data", hold=3) as server:
        transport = RemoteTransport([Address(*server.address)], None, 20.0)
        transport.connect()
        call = verbs.Lookup([(server.store.table, np.array([1], np.uint64))], False)

        def work(number: int) -> None:
            if number == 0:
                with pytest.raises(hps.DeadlineError):
                    transport.perform([(0, call)], 0.2)
                transport.perform([(0, call)], 20.0)
            else:
                transport.perform([(0, call)], 20.0)

        # The call that was given up is one of the three that the server waits for.
        server.hold = 4
        started = time.monotonic()
        errors = in_threads(3, work)
        assert errors == []
        assert time.monotonic() - started < 10
        transport.close()


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    """A proxy before the server that all tests share."""
    host, _, port = servers.url("tcp").removeprefix("hps://").rpartition(":")
    with Proxy((host, int(port))) as proxy:
        yield proxy


def spec() -> hps.TableSpec:
    return hps.TableSpec(fresh_name(), 2, hps.SGD(1.0), hps.Zeros())


@pytest.mark.parametrize("kind", ["tcp", "tcp-aio"])
def test_a_connection_that_falls_silent_is_replaced_within_the_deadline(
    kind: str, proxy: Proxy
) -> None:
    with connect(kind, proxy.url, timeout=8.0) as ps:
        table = ps.create_table(spec())
        for number in range(1, 4):
            proxy.silence()
            table.apply_gradients([1, 2], ONES)
            np.testing.assert_array_equal(table.lookup([1, 2]), -number * ONES)
        assert proxy.connections == 4


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# A signal between the opening of a socket and its assignment leaves it to the garbage collector,
# whose warnings a signal may interrupt in turn.
def unclosed(test: Any) -> Any:
    for ignored in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{ignored}")(test)
    return test


@unclosed
def test_a_signal_inside_a_call_costs_that_call(servers: Servers) -> None:
    rnd, made = random.Random(7), spec()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with hps.connect(servers.url("tcp"), timeout=20.0) as ps:
            table = ps.create_table(made)
            keys = np.arange(1, 201)
            table.assign(keys, np.stack([keys, keys], 1).astype(np.float32))
            begun = ended = cut = 0
            for _ in range(1500):
                try:
                    signal.setitimer(signal.ITIMER_REAL, rnd.uniform(20e-6, 900e-6))
                    begun += 1
                    table.apply_gradients([5000], ONES[:1])
                    ended += 1
                    table.lookup(keys)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    cut += 1
                np.testing.assert_array_equal(table.lookup(keys)[:, 0], keys)
            assert ended <= -table.lookup(5000)[0] <= begun
            assert cut > 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@unclosed
def test_a_signal_in_one_thread_leaves_the_calls_of_others(servers: Servers) -> None:
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with hps.connect(servers.url("tcp"), timeout=20.0) as ps:
            table = ps.create_table(spec())
            is_done = threading.Event()
            counts = [0, 0]

            def work(number: int) -> None:
                while not is_done.is_set():
                    table.apply_gradients([number], ONES[:1])
                    counts[number] += 1

            threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
            for thread in threads:
                thread.start()
            rnd, ends_s = random.Random(3), time.monotonic() + 3
            while time.monotonic() < ends_s:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rnd.uniform(100e-6, 2e-3))
                    table.lookup(7)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    pass
            is_done.set()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            assert [-int(n) for n in table.lookup([0, 1])[:, 0]] == counts
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_cancelled_call_leaves_connection_and_calls(proxy: Proxy) -> None:
    async def main() -> None:
        async with hps.aio.connect(proxy.url, timeout=30) as ps:
            table = await ps.create_table(spec())
            keys = np.arange(20_000)
            gradients = np.ones((20_000, 2), np.float32)
            for cancelled in (0, 3, 17, 39):
                tasks = []
                for n in range(40):
                    call = table.apply_gradients(keys, gradients) if n % 2 else table.lookup(keys)
                    tasks.append(asyncio.ensure_future(call))
                for _ in range(cancelled % 5):
                    await asyncio.sleep(0.001)
                tasks[cancelled].cancel()
                gradients[:] = 1  # The caller's again; the others read the same.
                results = await asyncio.gather(*tasks, return_exceptions=True)
                failed = [r for r in results if isinstance(r, BaseException)]
                assert len(failed) <= 1, failed
            assert proxy.connections == 1

    asyncio.run(main())


def reads_in_a_child(table: Any, replies: Any) -> None:
    """In a spawned process: the table came as a copy."""
    replies.put(table.lookup([1, 2]).tolist())
    table.apply_gradients([1, 2], ONES)
    replies.put(table.lookup([1, 2]).tolist())


def test_a_client_can_be_sent_to_a_process(servers: Servers) -> None:
    with hps.connect(servers.url("shards"), client_id=fresh_name()) as ps:
        table = ps.create_table(spec())
        table.apply_gradients([1, 2], ONES)
        context = multiprocessing.get_context("spawn")
        replies = context.Queue()
        child = context.Process(target=reads_in_a_child, args=(table, replies))
        child.start()
        assert replies.get(timeout=60) == (-ONES).tolist()
        assert replies.get(timeout=60) == (-2 * ONES).tolist()
        child.join(60)
        # The copy had a session of its own, and took over from nobody.
        table.apply_gradients([1, 2], ONES)
        np.testing.assert_array_equal(table.lookup([1, 2]), -3 * ONES)


@pytest.mark.parametrize("timeout", [math.inf, 1e10])
def test_a_timeout_may_be_for_ever(servers: Servers, timeout: float) -> None:
    for kind in ("tcp", "tcp-aio"):
        with connect(kind, servers.url("tcp"), timeout=timeout) as ps:
            assert isinstance(ps.tables(timeout=timeout), list)


def test_several_copies_share_what_one_pickle_held(servers: Servers) -> None:
    with hps.connect(servers.url("tcp")) as ps:
        first, second = ps.create_table(spec()), ps.create_table(spec())
        copies = pickle.loads(pickle.dumps((ps, first, second)))  # noqa: S301 - our own
        again, one, two = copies
        assert (one.name, two.name) == (first.name, second.name)
        one.apply_gradients([1, 2], ONES)
        np.testing.assert_array_equal(first.lookup([1, 2]), -ONES)
        again.close()
        with pytest.raises(hps.UnavailableError):
            two.lookup(1)
        first.lookup(1)
