"""Stalls: the longest look-up of 100 rows in DRAM while the server grows, checkpoints, compacts.

    python benchmarks/stalls.py [--rows 4000000] [--seconds 20] [--plot stalls.svg]

Look-ups of the same 100 hot rows go, in turns, to the server under load and to an idle one beside
it: what the idle one shows is the machine's own noise. The loads come from another process: a
table that grows (index and rows), pushes to the same rows until the journal is checkpointed again
and again, and pushes to a table ten times the DRAM, which evict and compact.
"""

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from plots import plot_lines
from yardstick import print_machine, print_result

import hybridps as hps
from hybridps.demo.datasets import mix
from hybridps.demo.server import MIB, Server

DIM = 16
HOT = 100
PUSH = 8192
PAUSE_S = 0.001
PERCENTILES = (50.0, 99.0, 99.9, 100.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the table that grows")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--plot", type=Path, help="an SVG file: latencies by percentile")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the stores go: the device to measure")  # fmt: skip
    flags = parser.parse_args()
    print_machine()
    series = {}
    with contextlib.ExitStack() as stack:
        idle = Hot(stack, flags, dram=64 * MIB, nvme=1 << 30)
        for load in (grow, checkpoint, compact):
            with contextlib.ExitStack() as own:
                dram = 64 * MIB if load is compact else flags.rows * 200 + 256 * MIB
                # A short journal is checkpointed often.
                busy = Hot(
                    own, flags, dram=dram, nvme=(512 << 20) if load is checkpoint else 8 << 30
                )
                with running(load, busy.server.url, flags):
                    seconds = measure(busy, idle, flags.seconds)
            for side, waited in zip(("under load", "idle"), seconds, strict=True):
                report(load.__name__, side, waited)
                series[f"{load.__name__}, {side}"] = (PERCENTILES, 1e3 * at(waited))
    plot_lines(flags.plot, series, title=f"Look-ups of {HOT} rows in DRAM", x="percentile",
               y="ms")  # fmt: skip


class Hot:
    """A server and a connection that looks up the same rows."""

    def __init__(self, stack: contextlib.ExitStack, flags: argparse.Namespace, dram: int,
                 nvme: int) -> None:  # fmt: skip
        self.server = stack.enter_context(Server(dram, nvme, flags.directory, "interval"))
        self.ps = stack.enter_context(hps.connect(self.server.url, timeout=60.0))
        self.table = self.ps.create_table(spec("hot"))
        self.keys = mix(np.arange(HOT, dtype=np.uint64))
        self.table.lookup_or_insert(self.keys)

    def lookup(self) -> float:
        """Seconds of one look-up."""
        start = time.perf_counter()
        self.table.lookup(self.keys)
        return time.perf_counter() - start


def spec(name: str) -> hps.TableSpec:
    """The tables of this benchmark."""
    return hps.TableSpec(name, dim=DIM, optimizer=hps.Adagrad(0.05))


@contextlib.contextmanager
def running(load, url: str, flags: argparse.Namespace) -> Iterator[None]:  # noqa: ANN001
    """The load in a process of its own, ended with the block."""
    process = multiprocessing.get_context("spawn").Process(target=load, args=(url, flags.rows))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def measure(busy: Hot, idle: Hot, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Latencies of both, in turns."""
    waited: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for side, hot in enumerate((busy, idle)):
            waited[side].append(hot.lookup())
            time.sleep(PAUSE_S)
    return np.array(waited[0]), np.array(waited[1])


def at(seconds: np.ndarray) -> np.ndarray:
    """The latencies at the percentiles that are told."""
    return np.percentile(seconds, PERCENTILES)


def report(load: str, side: str, seconds: np.ndarray) -> None:
    p50, p99, p999, longest = 1e3 * at(seconds)
    print(f"{load:10} {side:10} p50 {p50:6.2f} p99 {p99:6.2f} p99.9 {p999:7.2f} longest "
          f"{longest:7.2f} ms of {len(seconds):,}", flush=True)  # fmt: skip
    print_result("stalls", load=load, side=side, p50_ms=p50, p99_ms=p99, p999_ms=p999,
                 longest_ms=longest, lookups=len(seconds))  # fmt: skip


def pushes(url: str, name: str, rows: int, *, fresh: bool) -> None:
    """Pushes for ever: to new keys one after the other, or to `rows` keys round and round."""
    gradients = np.full((PUSH, DIM), 0.01, np.float32)
    with hps.connect(url, timeout=60.0) as ps:
        table = ps.create_table(spec(name))
        low = 0
        while True:
            keys = np.arange(low, low + PUSH, dtype=np.uint64)
            table.apply_gradients(mix(keys), gradients)
            low += PUSH
            if low >= rows:
                low = 0
                if fresh:
                    ps.drop_table(name)
                    table = ps.create_table(spec(name))


def grow(url: str, rows: int) -> None:
    """A table from nothing to `rows`, again and again."""
    pushes(url, "grows", rows, fresh=True)


def checkpoint(url: str, rows: int) -> None:
    """The same rows, all in DRAM: the journal fills and is checkpointed."""
    pushes(url, "trained", rows // 20, fresh=False)


def compact(url: str, rows: int) -> None:
    """A table far larger than the DRAM: rows leave, their old records die."""
    pushes(url, "evicted", rows, fresh=False)


if __name__ == "__main__":
    main()
