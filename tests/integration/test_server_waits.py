"""Goal: what waits for a device keeps nobody waiting who need not: the event loop, reads of rows in
memory, newcomers, looks at health and counters.

Method: real servers whose syncs take long (strace delays each), with pushes that wait for them.
The loop's own lateness is measured without the time in which the system let it not run.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.lag import LagProbe
from support.server import ServerProcess

import hybridps as hps

SYNC_S = 0.4
# Half of a sync: what waits for one takes longer, whatever the machine does besides.
BOUND_S = SYNC_S / 2
RUN_S = 4.0
DIM = 16

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace delays syncs")


def slow(calls: str) -> tuple[str, ...]:
    """A prefix that delays these system calls of the server."""
    delay = f"inject={calls}:delay_enter={int(SYNC_S * 1e6)}"
    quiet = ("strace", "-f", "--seccomp-bpf", "-qqq", "-o", os.devnull)
    return (*quiet, "-e", f"trace={calls}", "-e", delay)


@contextlib.contextmanager
def going_on(*works: Callable[[], None]) -> Iterator[None]:
    """Repeats each in a thread of its own until the block ends."""
    stop = threading.Event()

    def repeat(work: Callable[[], None]) -> None:
        while not stop.is_set():
            work()

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("durability", ["interval", "always"])
def test_the_loop_waits_for_no_device(tmp_path: Path, durability: str) -> None:
    """Small pushes, settings that are durable at once, new tables, flushes, reads of both tiers."""
    prefix = slow("fdatasync,fsync")
    with (
        ServerProcess(tmp_path / "d", "--durability", durability, prefix=prefix) as server,
        hps.connect(server.url, timeout=60) as ps,
        hps.connect(server.url, timeout=60) as other,
    ):
        table = ps.create_table(hps.TableSpec("t", DIM, hps.SGD(0.1)))
        keys, gradients = np.arange(32), np.ones((32, DIM), np.float32)
        table.apply_gradients(keys, gradients)
        numbers = iter(range(1_000_000))
        works = (
            lambda: table.apply_gradients(keys, gradients),
            lambda: table.set_learning_rate(0.1 + next(numbers) % 10 / 100),
            lambda: other.create_table(hps.TableSpec(f"u{next(numbers)}", 1, hps.SGD())),
            other.flush,
            lambda: other.table("t").lookup(keys),
            lambda: other.table("t").lookup_or_insert(keys + next(numbers)),
            lambda: server.http("/metrics"),
        )
        with going_on(*works), LagProbe(server) as lag:
            time.sleep(RUN_S)
    assert lag.asked > 20
    assert lag.longest_s < BOUND_S


def test_reads_of_rows_in_memory_wait_for_no_sync(tmp_path: Path) -> None:
    """Pushes wait, each for its sync, more of them than there are engine threads."""
    prefix = slow("fdatasync,fsync")
    arguments = ("--durability", "always", "--threads", "1")
    with (
        ServerProcess(tmp_path / "d", *arguments, prefix=prefix) as server,
        hps.connect(server.url, timeout=60) as ps,
    ):
        table = ps.create_table(hps.TableSpec("t", DIM, hps.SGD(0.1)))
        table.apply_gradients(np.arange(32), np.ones((32, DIM), np.float32))
        rows = np.ones((8, DIM), np.float32)

        def push() -> None:
            with hps.connect(server.url, timeout=60) as own:
                for start in range(0, 800, 8):
                    if stop.is_set():
                        break
                    own.table("t").apply_gradients(np.arange(start, start + 8), rows)

        took: dict[str, float] = {}
        looks: dict[str, Callable[[], object]] = {
            "lookup": lambda: table.lookup(np.arange(100, 132)),
            "large lookup": lambda: table.lookup(np.arange(10_000)),
            "hello": lambda: hps.connect(server.url, timeout=60).close(),
            "tables": ps.tables,
            "stats": ps.stats,
            "metrics": lambda: server.http("/metrics"),
            "readyz": lambda: server.http("/readyz"),
        }
        stop = threading.Event()
        with going_on(*[push] * 4):
            time.sleep(SYNC_S)
            for name, look in looks.items():
                times = []
                for _ in range(9):
                    began = time.monotonic()
                    look()
                    times.append(time.monotonic() - began)
                took[name] = sorted(times)[len(times) // 2]
            stop.set()
    late = {name: seconds for name, seconds in took.items() if seconds > BOUND_S}
    assert not late


def test_reads_of_rows_in_memory_wait_for_no_room(tmp_path: Path) -> None:
    """Pushes wait for the log and the journal, which compaction and checkpoints make room in."""
    prefix = slow("fdatasync")
    arguments = ("--threads", "1")
    with (
        ServerProcess(
            tmp_path / "d", *arguments, prefix=prefix, dram="8MiB", nvme="64MiB"
        ) as server,
        hps.connect(server.url, timeout=60) as ps,
    ):
        table = ps.create_table(hps.TableSpec("t", 64, hps.Adagrad(0.1)))
        hot, gradients = np.arange(50), np.ones((4000, 64), np.float32)
        table.apply_gradients(hot, gradients[:50])
        random = np.random.default_rng(1)
        own = hps.connect(server.url, timeout=60)

        def push() -> None:
            keys = random.choice(30_000, 4000, replace=False)
            own.apply_gradients({"t": (keys, gradients)})

        looks = (lambda: table.lookup(hot), lambda: hps.connect(server.url, timeout=60).close())
        longest_s = 0.0
        with going_on(push):
            end = time.monotonic() + 3 * RUN_S
            while time.monotonic() < end:
                for look in looks:
                    began = time.monotonic()
                    look()
                    longest_s = max(longest_s, time.monotonic() - began)
                time.sleep(0.01)
        own.close()
    # What waited for a segment to be written waited for two syncs at least.
    assert longest_s < 2 * SYNC_S
