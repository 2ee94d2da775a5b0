"""Hits of the engine's cache on real traces, beside LRU and LFU of the same size.

    python benchmarks/hit_ratio.py [--share 0.1] [--accesses 0] [--traces oltp,web12] [--scan]

Every access is one call for one key (`lookup_or_insert`) to a `local:` store whose table may keep
about `--share` of the distinct keys in DRAM; a hit is an access whose row was there. LRU, and LFU
that remembers the counts of what it evicted and refuses what is colder than all that it holds, are
simulated with as many rows as the table held at the end. `--scan` adds, after every 10,000
accesses, 1,000 keys that come once: the hits of the others tell whether scans flush the hot set.

Traces: `data/traces/*.npz` and `data/criteo60k` below `--data` (or the directory that
HYBRIDPS_SHARED names); without them a skewed stream whose hot keys drift.
"""

import argparse
import heapq
import os
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from plots import plot_bars
from yardstick import Keys, print_machine, print_result

import hybridps as hps
from hybridps.demo.datasets import mix

MIB = 1 << 20
ROWS_BYTES = 3 * MIB  # Of the rows that a table may keep: well above the least cap of a table.
SCAN_EVERY, SCAN_KEYS = 10_000, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--accesses", type=int, default=0, help="of each trace; 0: all")
    parser.add_argument("--traces", help="names, comma between; all that are there by default")
    parser.add_argument("--data", type=Path, default=os.environ.get("HYBRIDPS_SHARED"))
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--plot", type=Path, help="an SVG file")
    flags = parser.parse_args()
    print_machine()
    ratios = {}
    for name, ids in traces(flags.data):
        if flags.traces and name not in flags.traces.split(","):
            continue
        ratios[name] = compare(name, ids[: flags.accesses or None], flags.share, scan=flags.scan)
    plot_bars(flags.plot, ratios, y="hits, %",
              title=f"Cache of {flags.share:.0%} of the keys, one access a call")  # fmt: skip


def traces(data: Path | None) -> Iterator[tuple[str, Keys]]:
    """Name and ids, in the order of access."""
    root = Path(data) / "data" if data else None
    if root is None or not (root / "traces").is_dir():
        yield "drifting zipf", drifting_zipf()
        return
    for path in sorted((root / "traces").glob("*.npz")):
        yield path.stem, np.load(path, allow_pickle=False)["ids"].astype(np.uint64)
    criteo = root / "criteo60k" / "criteo60k.npz"
    if criteo.is_file():
        values = np.load(criteo, allow_pickle=False)["cat"].astype(np.int64)
        keys = (np.arange(1, 27, dtype=np.int64) << 32 | values)[values >= 0]
        yield "criteo60k", np.unique(keys, return_inverse=True)[1].astype(np.uint64)


def drifting_zipf(accesses: int = 600_000, keys: int = 60_000) -> Keys:
    """Zipf 0.9; a tenth of the ranks change hands in the course of it."""
    random = np.random.default_rng(5)
    weights = np.cumsum(np.arange(1, keys + 1, dtype=np.float64) ** -0.9)
    ranks = np.searchsorted(weights / weights[-1], random.random(accesses))
    drift = np.arange(accesses) * (keys // 10) // accesses
    return ((ranks * 7919 + drift * (ranks % 10 == 0)) % keys).astype(np.uint64)


def compare(name: str, ids: Keys, share: float, *, scan: bool) -> dict[str, float]:
    """Hits in percent: of the store, of LRU, of LFU."""
    distinct = len(np.unique(ids))
    stream, counted = with_scans(ids) if scan else (ids, np.ones(len(ids), bool))
    hits, rows = of_store(mix(stream), counted, int(distinct * share), distinct)
    ratios = {"hybridps": hits / counted.sum() * 100}
    for side, simulate in (("LRU", lru), ("LFU", lfu)):
        found = np.fromiter(simulate(stream.tolist(), rows), bool, len(stream))
        ratios[side] = float((found & counted).sum() / counted.sum() * 100)
    better = max(ratios["LRU"], ratios["LFU"])
    told = ", ".join(f"{side} {ratio:.1f} %" for side, ratio in ratios.items())
    print(f"{name}: {told} ({rows} rows, {rows / distinct:.1%} of {distinct} keys; "
          f"{ratios['hybridps'] - better:+.1f} against the better)", flush=True)  # fmt: skip
    print_result("hit_ratio", trace=name, rows=rows, keys=distinct, **ratios)
    return ratios


def with_scans(ids: Keys) -> tuple[Keys, np.ndarray]:
    """Keys that come once between the others, and which accesses are the others'."""
    parts, counted = [], []
    fresh = int(ids.max()) + 1
    for start in range(0, len(ids), SCAN_EVERY):
        piece = ids[start : start + SCAN_EVERY]
        parts += [piece, np.arange(fresh, fresh + SCAN_KEYS, dtype=np.uint64)]
        counted += [np.ones(len(piece), bool), np.zeros(SCAN_KEYS, bool)]
        fresh += SCAN_KEYS
    return np.concatenate(parts), np.concatenate(counted)


def of_store(keys: Keys, counted: np.ndarray, rows: int, distinct: int) -> tuple[int, int]:
    """Hits of the accesses that count, and the rows that the table held in DRAM at the end."""
    dim = int(np.clip(ROWS_BYTES / rows / 4 - 8, 16, 1024))
    cap = rows * (32 + 4 * dim) + 11 * distinct + 4 * rows + 16 * 1024
    with (
        tempfile.TemporaryDirectory() as home,
        hps.connect(f"local:{home}/store", dram="64MiB", nvme="16GiB", durability="none") as ps,
    ):
        spec = hps.TableSpec("trace", dim=dim, optimizer=hps.SGD(0.1), dram=max(cap, MIB))
        table = ps.create_table(spec)
        hits, n = 0, 0
        # Runs of accesses that count, or do not: the counters tell the hits of a whole run.
        borders = np.flatnonzero(np.diff(counted)) + 1
        for run in np.split(keys, borders):
            before = table.stats()["cache_hits"]
            for at in range(len(run)):
                table.lookup_or_insert(run[at : at + 1])
            hits += (table.stats()["cache_hits"] - before) * bool(counted[n])
            n += len(run)
        return hits, table.stats()["rows_dram"]


def lru(ids: list[int], rows: int) -> Iterator[bool]:
    """Whether each access finds its row; the least recently used one makes room."""
    held: OrderedDict[int, None] = OrderedDict()
    for key in ids:
        is_hit = key in held
        held[key] = None
        held.move_to_end(key)
        if len(held) > rows:
            held.popitem(last=False)
        yield is_hit


def lfu(ids: list[int], rows: int) -> Iterator[bool]:
    """The same; the one that came least often in all makes room, or the new one is refused."""
    counts: Counter[int] = Counter()
    held: set[int] = set()
    heap: list[tuple[int, int, int]] = []
    for now, key in enumerate(ids):
        counts[key] += 1
        yield key in held
        if key not in held and len(held) == rows:
            # Entries of the heap may be out of date: those are put back where they belong.
            while heap[0][0] != counts[heap[0][2]]:
                _, when, stale = heap[0]
                heapq.heapreplace(heap, (counts[stale], when, stale))
            if heap[0][0] > counts[key]:
                continue
            held.remove(heapq.heappop(heap)[2])
        if key not in held:
            held.add(key)
            heapq.heappush(heap, (counts[key], now, key))


if __name__ == "__main__":
    main()
