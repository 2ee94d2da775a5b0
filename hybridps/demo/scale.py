"""Part two: a planted log of millions of ids, most of whose rows live on the device.

Two servers hold the same table, one wholly in DRAM, one with DRAM for the index and a share of
the rows. They train in alternating segments on the same batches, so the ratio of their speeds is
that of the tiers and not of the machine's mood, and their AUCs must agree. Then another process
queries the smaller server while it goes on training.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import hybridps_torch

import hybridps as hps
from hybridps.demo import models, sizing
from hybridps.demo.command import Options
from hybridps.demo.datasets import Dataset
from hybridps.demo.planted import PlantedLog
from hybridps.demo.progress import Progress
from hybridps.demo.queries import Latencies, querying
from hybridps.demo.server import MIB, Server
from hybridps.demo.training import Positions, Trainer, alternate, batches, signed, specs

BATCH = 4096
# Long beside the look-ahead, which begins anew with every segment.
SEGMENT_STEPS = 12
LOOK_AHEAD = 2
FILL_BATCH = 65_536
TEST_SAMPLES = 50_000
QUERY_SECONDS = 8.0
# A slow or busy machine trains on fewer samples rather than for longer.
TRAIN_SECONDS = 75.0
# Compaction wants room, and the log keeps dead records for a while.
DISK_FACTOR = 6


@dataclass(frozen=True)
class Arm:
    """One server's side of the comparison."""

    samples_s: float
    auc: float
    dram_limit: int
    dram_bytes: int
    index_bytes: int
    rss_bytes: int


@dataclass(frozen=True)
class Scale:
    """What part two found."""

    model: str
    ids: int
    samples: int
    bayes_auc: float
    full: Arm
    tiered: Arm
    ratio: float
    rows_dram: int
    rows_nvme: int
    nvme_bytes: int
    hit_ratio: float
    device_reads: int
    background_reads: int
    fill_rows_s: float
    queries: Latencies
    samples_s_while_queried: float


class Side:
    """A server, a connection to it, and a trainer over its tables."""

    def __init__(self, server: Server, ps: hps.ParameterServer, trainer: Trainer) -> None:
        self.server, self.ps, self.trainer = server, ps, trainer

    def arm(self, samples_s: float, auc: float) -> Arm:
        """This side of the result."""
        stats = self.ps.stats()
        return Arm(
            samples_s, auc, stats["dram_limit"], stats["dram_bytes"], stats["index_bytes"],
            self.server.resident_bytes(),
        )  # fmt: skip


def run(options: Options) -> Scale:
    """Fills both servers, trains, compares, queries."""
    log = PlantedLog(options.scale, seed=options.seed)
    dataset = log.dataset(options.samples, TEST_SAMPLES)
    steps = list(batches(dataset.train, BATCH, 1, options.seed))
    with contextlib.ExitStack() as stack:
        whole = sizes(options, dataset)
        full = enter(stack, options, dataset, sizing.store_bytes(whole, 1.0), whole)
        fill_s = fill(full, log, options)
        # The whole store has just told what an index of this many keys really takes.
        budget = sizing.tiered(full.ps.stats(), options.share)
        tiered = enter(stack, options, dataset, budget, whole)
        fill_s += fill(tiered, log, options)
        before = tiered.ps.stats()
        title = f"training, {options.share:.0%} of the rows in DRAM and all"
        with Progress(title, 2 * options.samples, shown=options.bars) as bar:
            seconds = alternate(
                [full.trainer, tiered.trainer], steps, SEGMENT_STEPS, bar.advance, TRAIN_SECONDS
            )
        samples = sum(map(len, steps[: len(seconds[0]) * SEGMENT_STEPS]))
        after = tiered.ps.stats()
        arms = [
            side.arm(samples / sum(s), side.trainer.test_auc(dataset, BATCH))
            for side, s in zip((full, tiered), seconds, strict=True)
        ]
        latencies, rate = serve_while_training(tiered, steps, options, log)
    counts = {name: after[name] - before[name] for name in after}
    return _result(options, samples, dataset, arms, seconds, after, counts, 2 * log.ids / fill_s,
                   latencies, rate)  # fmt: skip


def sizes(options: Options, dataset: Dataset) -> list[sizing.TableSize]:
    """Both tables of a wide model hold a row for every id."""
    model = models.build(options.model, dataset, options.dim, options.seed)
    tables = specs(model, options.rate or dataset.rate, options.seed)
    return [sizing.TableSize(spec, options.scale) for spec in tables.values()]


def enter(
    stack: contextlib.ExitStack,
    options: Options,
    dataset: Dataset,
    dram_bytes: int,
    tables: list[sizing.TableSize],
) -> Side:
    """Starts a server that the stack will stop, and a trainer over its tables."""
    disk = DISK_FACTOR * sum(t.rows * t.row_bytes for t in tables) + 256 * MIB
    server = stack.enter_context(Server(dram_bytes, disk, options.directory))
    ps = stack.enter_context(hps.connect(server.url, timeout=60.0))
    model = models.build(options.model, dataset, options.dim, options.seed)
    layers = hybridps_torch.EmbeddingCollection(ps, {t.spec.name: t.spec for t in tables})
    trainer = Trainer(model, layers, signed(dataset.keys), dataset)
    trainer.look_ahead = LOOK_AHEAD
    return Side(server, ps, trainer)


def fill(side: Side, log: PlantedLog, options: Options) -> float:
    """Gives every id of the log its row, as a bulk load would; returns the seconds."""
    start = time.perf_counter()
    names = side.ps.tables()
    with Progress("a row for every id", log.ids, " rows", shown=options.bars) as bar:
        for keys in log.all_keys(FILL_BATCH):
            side.ps.lookup_or_insert(dict.fromkeys(names, keys))
            bar.advance(len(keys))
    return time.perf_counter() - start


def serve_while_training(
    side: Side, steps: list[Positions], options: Options, log: PlantedLog
) -> tuple[Latencies, float]:
    """Queries from another process for a while; (their latencies, samples/s of training)."""
    names = side.ps.tables()
    samples, start = 0, time.perf_counter()
    with (
        querying(side.server.url, names, log, QUERY_SECONDS) as asked,
        Progress("training while queried", int(QUERY_SECONDS), " s", shown=options.bars) as bar,
    ):
        done = 0
        for step in itertools.cycle(steps):
            if asked.is_done():
                break
            side.trainer.step(step)
            samples += len(step)
            elapsed = min(int(time.perf_counter() - start), int(QUERY_SECONDS))
            bar.advance(elapsed - done)
            done = elapsed
        rate = samples / (time.perf_counter() - start)
        return asked.result(), rate


def _result(
    options: Options,
    samples: int,
    dataset: Dataset,
    arms: list[Arm],
    seconds: list[list[float]],
    stats: Mapping[str, int],
    counts: Mapping[str, int],
    fill_rows_s: float,
    latencies: Latencies,
    rate: float,
) -> Scale:
    hits, misses = counts["cache_hits"], counts["cache_misses"]
    ratio = statistics.median(f / t for f, t in zip(*seconds, strict=True))
    bayes = dataset.bayes_auc
    return Scale(
        options.model, stats["keys"], samples, float("nan") if bayes is None else bayes,
        arms[0], arms[1], ratio, stats["rows_dram"], stats["rows_nvme"], stats["nvme_bytes"],
        hits / max(1, hits + misses), counts["device_reads"], counts["background_reads"],
        fill_rows_s, latencies, rate,
    )  # fmt: skip
