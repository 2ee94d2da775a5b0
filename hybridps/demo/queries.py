"""Queries of an inference task, from a process of its own, through the asyncio client.

A query asks the rows of one request: some candidates, each with the ids of every feature. A few
are in flight at a time; each sends its next as soon as the last was answered.
`python -m hybridps.demo.queries` is that process; it prints its result as one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

import hybridps as hps
from hybridps.demo.planted import FEATURES, PlantedLog

CANDIDATES = 32
IN_FLIGHT = 4
PREPARED = 64
STREAM = 1_000_000  # chunk numbers that no training sample uses
EXIT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Latencies:
    """What the queries saw."""

    queries: int
    ids_per_query: int
    queries_s: float
    p50_ms: float
    p99_ms: float


class Asked:
    """A running query process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def result(self) -> Latencies:
        """What it found, once it has ended."""
        output, _ = self._process.communicate(timeout=EXIT_TIMEOUT_S)
        if self._process.returncode:
            raise RuntimeError(f"the query process failed with code {self._process.returncode}")
        return Latencies(**json.loads(output))


@contextlib.contextmanager
def querying(url: str, tables: Sequence[str], log: PlantedLog, seconds: float) -> Iterator[Asked]:
    """Runs the queries beside the block; the process never outlives it."""
    command = [
        sys.executable, "-m", "hybridps.demo.queries", url, ",".join(tables),
        str(log.ids), str(log.seed), str(seconds),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603
    try:
        yield Asked(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def ask(url: str, tables: Sequence[str], log: PlantedLog, seconds: float) -> Latencies:
    """Queries for this many seconds."""
    keys = log.chunk(STREAM, PREPARED * CANDIDATES)[0].reshape(PREPARED, CANDIDATES, FEATURES)
    times: list[float] = []
    async with hps.aio.connect(url) as ps:
        end = time.perf_counter() + seconds

        async def worker(first: int) -> None:
            number = first
            while time.perf_counter() < end:
                start = time.perf_counter()
                await ps.lookup(dict.fromkeys(tables, keys[number % PREPARED]))
                times.append(time.perf_counter() - start)
                number += IN_FLIGHT

        await asyncio.gather(*(worker(first) for first in range(IN_FLIGHT)))
    p50, p99 = (float(np.quantile(times, q)) * 1e3 for q in (0.5, 0.99))
    return Latencies(len(times), CANDIDATES * FEATURES, len(times) / seconds, p50, p99)


def main() -> None:
    """The query process."""
    parser = argparse.ArgumentParser(prog="hybridps.demo.queries", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("tables", type=lambda text: text.split(","))
    parser.add_argument("ids", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("seconds", type=float)
    flags = parser.parse_args()
    log = PlantedLog(flags.ids, flags.seed)
    print(json.dumps(asdict(asyncio.run(ask(flags.url, flags.tables, log, flags.seconds)))))


if __name__ == "__main__":
    main()
