"""The NVMe tier beside RocksDB: batches of fixed rows, most of them on the device.

    python benchmarks/tier.py [--keys 1000000] [--dim 64] [--share 0.15] [--rounds 12]

Every store gets the same DRAM (a share of the row bytes and 16 MiB; in ours index and buffers are
inside it, in RocksDB its write buffers), the same rows and the same batches of unique keys, batch
by batch in turns. Cases: Zipf 0.99, Zipf 1.05, uniform (nearly every key is a miss), and
read-modify-write at Zipf 0.99 with compaction running.

Bytes are those of a whole case after its warm-up, background work included. Ours counts its own
(tests hold them against the kernel's); a peer's are what the kernel counts for the process less
ours, so for figures of bytes give one peer at a time with --stores.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peers import stores
from plots import plot_bars
from yardstick import Keys, print_machine, print_result

from hybridps.demo.datasets import mix

MIB = 1 << 20
EXPONENTS = {"zipf 0.99": 0.99, "zipf 1.05": 1.05, "uniform": 0.0, "update": 0.99}
DECAY = np.float32(0.999)


@dataclass
class Side:
    """One store with what was measured of it in one case."""

    store: stores.Store
    directory: Path
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    moved: list[tuple[int, int]] = field(default_factory=list)

    def clear(self) -> None:
        """Begins a case."""
        self.seconds, self.cpu_seconds, self.moved = [], [], []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.15)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--stores", default=",".join(store.name for store in stores.ALL))
    parser.add_argument("--plot", type=Path, help="an SVG file")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the stores go: the device to measure")  # fmt: skip
    flags = parser.parse_args()
    print_machine("rocksdict")
    with contextlib.ExitStack() as stack:
        sides = [side for kind in stores.ALL if kind.name in flags.stores.split(",")
                 if (side := opened(stack, kind, flags)) is not None]  # fmt: skip
        keys = mix(np.arange(flags.keys, dtype=np.uint64))
        load(sides, keys, flags)
        rates = {case: measure(case, sides, keys, flags) for case in EXPONENTS}
    plot_bars(flags.plot, rates, title=f"{flags.keys:,} rows of {4 * flags.dim} B, DRAM for "
              f"{flags.share:.0%}", y="keys/s")  # fmt: skip


def opened(stack: contextlib.ExitStack, kind: type, flags: argparse.Namespace) -> Side | None:
    """The store in a directory of its own, or a line that says why not."""
    directory = Path(stack.enter_context(
        tempfile.TemporaryDirectory(prefix="hybridps-bench-", dir=flags.directory)))  # fmt: skip
    rows = flags.keys * flags.dim * 4
    dram = int(rows * flags.share) + stores.WRITE_BUFFERS
    try:
        store = kind(directory, flags.dim, dram, rows * 3 + 512 * MIB)
    except stores.MissingError as error:
        print(f"{kind.name} is skipped: {error}")
        return None
    stack.callback(store.close)
    return Side(store, directory)


def load(sides: list[Side], keys: Keys, flags: argparse.Namespace) -> None:
    """Every row once, in the order of the keys' numbers; then everything is left to settle."""
    for side in sides:
        start = time.perf_counter()
        for low in range(0, len(keys), 65_536):
            part = keys[low : low + 65_536]
            side.store.put(part, rows_of(part, flags.dim))
        side.store.settle(whole=True)
        print(
            f"{side.store.name:10} loaded {len(keys) / (time.perf_counter() - start):,.0f} rows/s"
        )
        probe = keys[:: max(1, len(keys) // 1000)].copy()
        if not np.array_equal(side.store.get(probe), rows_of(probe, flags.dim)):
            raise RuntimeError(f"{side.store.name} gives other rows than it was given")


def rows_of(keys: Keys, dim: int) -> stores.Rows:
    """The row that each key is loaded with."""
    first = (keys % np.uint64(1 << 20)).astype(np.float32)
    return first[:, None] + np.arange(dim, dtype=np.float32)


def batches(case: str, keys: Keys, flags: argparse.Namespace) -> list[Keys]:
    """Batches of unique keys; which key is how hot differs from the order of the load."""
    random = np.random.default_rng(len(case))
    shuffled = np.random.default_rng(1).permutation(keys)
    weights = np.arange(1, len(keys) + 1, dtype=np.float64) ** -EXPONENTS[case]
    cumulated = np.cumsum(weights / weights.sum())
    made = []
    for _ in range(flags.warmup + flags.rounds):
        ranks = np.empty(0, np.int64)
        while len(ranks) < flags.batch:
            drawn = np.searchsorted(cumulated, random.random(2 * flags.batch))
            ranks = np.concatenate([ranks, np.minimum(drawn, len(keys) - 1)])
            _, first = np.unique(ranks, return_index=True)
            ranks = ranks[np.sort(first)]
        made.append(shuffled[ranks[: flags.batch]])
    return made


def measure(
    case: str, sides: list[Side], keys: Keys, flags: argparse.Namespace
) -> dict[str, float]:
    """Runs a case in turns; prints a line a store. Returns keys/s."""
    for side in sides:
        side.clear()
    space = dict.fromkeys((side.store.name for side in sides), 0)
    for number, batch in enumerate(batches(case, keys, flags)):
        if number == flags.warmup:
            note_bytes(sides)
        for side in sides if number % 2 else reversed(sides):
            step(side, batch, is_update=case == "update", is_counted=number >= flags.warmup)
            if case == "update":
                space[side.store.name] = max(space[side.store.name], used_bytes(side.directory))
    note_bytes(sides)
    ours = statistics.median(sides[0].seconds)
    for side in sides:
        report(case, side, flags, ours, space[side.store.name])
    return {s.store.name: flags.batch / statistics.median(s.seconds) for s in sides}


def step(side: Side, batch: Keys, *, is_update: bool, is_counted: bool) -> None:
    """One batch through one store."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = side.store.get(batch)
    if is_update:
        side.store.put(batch, rows * DECAY)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if is_counted:
        side.seconds.append(wall)
        side.cpu_seconds.append(cpu)


def note_bytes(sides: list[Side]) -> None:
    """Notes what each store has read and written so far."""
    own = [side.store.moved_bytes() for side in sides if isinstance(side.store, stores.Hybridps)]
    read, written = own[0] if own else (0, 0)
    process = process_io()
    for side in sides:
        is_ours = isinstance(side.store, stores.Hybridps)
        side.moved.append((read, written) if is_ours else (process[0] - read, process[1] - written))


def report(case: str, side: Side, flags: argparse.Namespace, ours: float, space: int) -> None:
    median = statistics.median(side.seconds)
    counted = flags.batch * len(side.seconds)
    read_bytes, written_bytes = (end - start for start, end in zip(*side.moved, strict=True))
    figures = {
        "keys_s": flags.batch / median,
        "cpu_us_per_key": statistics.median(side.cpu_seconds) / flags.batch * 1e6,
        "read_bytes_per_key": read_bytes / counted,
        "times_ours": median / ours,
        "p99_over_p50": float(np.percentile(side.seconds, 99)) / median,
    }
    if case == "update":
        figures["written_over_updated"] = written_bytes / (counted * 4 * flags.dim)
        figures["space_over_rows"] = space / (flags.keys * 4 * flags.dim)
    print(f"{case:10} {side.store.name:10} {figures['keys_s']:12,.0f} keys/s "
          f"{figures['cpu_us_per_key']:7.2f} CPU us/key, {figures['times_ours']:6.2f} times ours",
          flush=True)  # fmt: skip
    print_result("tier", case=case, store=side.store.name, **figures)


def process_io() -> tuple[int, int]:
    """(bytes read, bytes written) of devices by this process, as the kernel counts them."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    counters = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return counters["read_bytes"], counters["write_bytes"]


def used_bytes(directory: Path) -> int:
    """What the files of a store take on the device now."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # compaction deletes files meanwhile
            total += path.stat().st_blocks * 512
    return total


if __name__ == "__main__":
    main()
