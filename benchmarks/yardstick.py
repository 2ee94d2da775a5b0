"""What the benchmarks share: the machine in one line, the workload, interleaved timing.

Sides are timed in turns within one run and compared by their medians, so that a busy machine slows
all of them alike. CPU time stands beside wall time: it is the steadier of the two on a shared
machine. Every script prints one JSON line a comparison, for machines, below the text for people.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybridps.demo.datasets import mix

FEATURES = 26
BATCH = FEATURES * 4096
EXPONENT = 1.05

Keys = NDArray[np.uint64]


def print_machine(*packages: str) -> None:
    """Processor, cores, load and the versions that matter."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in ("hybridps", "numpy", *packages))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"machine: {model}, {cores} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}")
    print(f"versions: Python {platform.python_version()}, {versions}", flush=True)


def version(package: str) -> str:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


class Workload:
    """`keys` keys over 26 features; batches of 106,496 ids, Zipf 1.05 within each feature."""

    def __init__(self, keys: int, seed: int = 7) -> None:
        self.ranks = keys // FEATURES
        self.random = np.random.default_rng(seed)
        weights = np.arange(1, self.ranks + 1, dtype=np.float64) ** -EXPONENT
        self.cumulated = np.cumsum(weights / weights.sum())

    def all_keys(self) -> Keys:
        """Every key once."""
        return mix(np.arange(self.ranks * FEATURES, dtype=np.uint64))

    def rows(self, ids: int = BATCH) -> NDArray[np.int64]:
        """A batch as row numbers, for tables that know no keys."""
        feature = np.arange(ids) % FEATURES
        rank = np.searchsorted(self.cumulated, self.random.random(ids))
        return feature * self.ranks + np.minimum(rank, self.ranks - 1)


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds of one side."""

    wall_s: float
    cpu_s: float

    def per_id(self, ids: int) -> str:
        """Nanoseconds for people."""
        return f"{self.cpu_s / ids * 1e9:8.1f} CPU ns/id {ids / self.wall_s / 1e6:8.2f} Mids/s"


def interleaved(
    sides: Mapping[str, Callable[[int], object]], rounds: int, warmup: int = 2
) -> dict[str, Timing]:
    """Times every side in every round, in turns; round numbers let a side pick its batch."""
    walls: dict[str, list[float]] = {name: [] for name in sides}
    cpus: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warmup, rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            wall, cpu = time.perf_counter(), time.process_time()
            sides[name](number)
            if number >= 0:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {n: Timing(statistics.median(walls[n]), statistics.median(cpus[n])) for n in sides}


def print_result(name: str, **figures: float | str) -> None:
    """One line of JSON."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"benchmark": name, **rounded}), flush=True)
