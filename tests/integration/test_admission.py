"""Goal: over every transport a table with an admission is a map of rows beside a map of counts,
whatever the shards, restarts and kills. Method: those maps, and real servers.
"""

import contextlib
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import connect, fresh_name, urls_of
from support.server import ServerProcess

import hybridps as hps
from hybridps import _core
from hybridps.placement import hash_keys

DIM = 4


def admitting(admission: Any, name: str | None = None) -> hps.TableSpec:
    return hps.TableSpec(
        name or fresh_name(), DIM, hps.SGD(0.5), hps.Normal(std=0.1), seed=3, admission=admission
    )


class Model:
    """Rows, and counts of keys that have none."""

    def __init__(self, table: Any, spec: hps.TableSpec) -> None:
        self.table, self.spec = table, spec
        self.n = spec.admission.n
        self.rows: dict[int, np.ndarray] = {}
        self.counts: dict[int, int] = {}

    def read(self, keys: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Counts in both, and compares the answers."""
        given = np.ones(len(keys), np.uint32) if counts is None else counts
        unique, inverse = np.unique(keys, return_inverse=True)
        sums = np.bincount(inverse, given).astype(int)
        for key, count, initial in zip(unique, sums, self.spec.initial_rows(unique), strict=True):
            if key in self.rows:
                continue
            so_far = self.counts.pop(int(key), 0) + int(count)
            if so_far >= self.n:
                self.rows[int(key)] = initial
            else:
                self.counts[int(key)] = so_far
        initial = self.spec.initial_rows(keys)
        expected = [self.rows.get(int(key), row) for key, row in zip(keys, initial, strict=True)]
        assert np.array_equal(self.table.lookup_or_insert(keys, counts), np.array(expected))

    def push(self, keys: np.ndarray, gradients: np.ndarray) -> None:
        """Trains the rows that there are."""
        self.table.apply_gradients(keys, gradients)
        for key, gradient in zip(keys, gradients, strict=True):
            if int(key) in self.rows:
                self.rows[int(key)] = self.rows[int(key)] - np.float32(0.5) * gradient

    def check(self, keys: np.ndarray) -> None:
        """Rows and zeros as expected; nothing else is there."""
        rows, found = self.table.lookup(keys, return_found=True)
        expected = [self.rows.get(int(key), np.zeros(DIM, np.float32)) for key in keys]
        assert np.array_equal(rows, np.array(expected))
        assert found.tolist() == [int(key) in self.rows for key in keys]
        assert self.table.stats()["candidates"] == len(self.counts)
        assert self.table.stats()["keys"] == len(self.rows)


def train(model: Model, random: np.random.Generator, steps: int) -> None:
    for _ in range(steps):
        keys = (2000 * random.random(300) ** 3).astype(np.int64)
        counts = random.integers(1, 3, len(keys), np.uint32) if random.random() < 0.5 else None
        model.read(keys, counts)
        named = np.unique(keys)
        gradients = random.standard_normal((len(named), DIM), np.float32)
        model.push(named, gradients)


def test_a_map_of_counts_beside_a_map_of_rows(ps: Any) -> None:
    spec = admitting(hps.MinCount(4))
    model = Model(ps.create_table(spec), spec)
    train(model, np.random.default_rng(1), 12)
    keys = np.arange(2000)
    model.check(keys)
    unadmitted = sorted(model.counts)[:20]
    model.table.assign(unadmitted[:10], np.ones((10, DIM), np.float32))
    for key in unadmitted[:10]:
        del model.counts[key]
        model.rows[key] = np.ones(DIM, np.float32)
    gone = sorted(model.rows)[:30]
    assert model.table.remove([*gone, *unadmitted[10:]]) == 30
    for key in gone:
        del model.rows[key]
    for key in unadmitted[10:]:
        del model.counts[key]
    train(model, np.random.default_rng(2), 3)
    model.check(keys)
    stats = model.table.stats()
    assert stats["gradients_unadmitted"] > 0
    assert stats["reads_unadmitted"] > 0
    assert stats["keys_admitted"] > 0


def test_lookups_prefetches_and_pushes_do_not_count(ps: Any) -> None:
    table = ps.create_table(admitting(hps.MinCount(2)))
    keys = np.arange(50)
    table.lookup_or_insert(keys)
    for _ in range(3):
        table.lookup(keys)
        table.apply_gradients(keys, np.ones((50, DIM), np.float32))
        ps.prefetch({table.name: keys})
    assert table.stats()["keys"] == 0
    assert table.stats()["gradients_unadmitted"] == 150
    table.lookup_or_insert(keys)
    assert table.stats()["keys"] == 50


def drawn(seed: int, keys: np.ndarray, n: int) -> np.ndarray:
    """The documented number of the n-th occurrence of keys."""
    golden = np.uint64(n * 0x9E3779B97F4A7C15 % 2**64)
    first = hash_keys(np.array([np.uint64(seed) ^ golden]))
    return hash_keys(first ^ hash_keys(keys.astype(np.uint64)))


def test_probability_is_a_function_of_seed_key_and_occurrence(ps: Any) -> None:
    spec = admitting(hps.Probability(0.25))
    table = ps.create_table(spec)
    keys = np.arange(3000)
    expected = np.zeros(len(keys), bool)
    for n in range(1, 5):
        table.lookup_or_insert(keys)
        expected |= drawn(spec.seed, keys, n) < np.uint64(2**62)
        assert np.array_equal(table.lookup(keys, return_found=True)[1], expected)
    assert 0.62 < expected.mean() < 0.75
    other = ps.create_table(admitting(hps.Probability(0.25)))
    other.lookup_or_insert(keys, np.full(len(keys), 4, np.uint32))
    assert np.array_equal(other.lookup(keys, return_found=True)[1], expected)


def test_the_setting_travels_and_is_live(ps: Any) -> None:
    spec = admitting(hps.MinCount(3, capacity=1000))
    table = ps.create_table(spec)
    assert table.spec == spec
    with pytest.warns(UserWarning, match="admission is .*stored value stays"):
        assert ps.create_table(admitting(hps.Probability(0.5), spec.name)).spec == spec
    for admission in (hps.Probability(0.001), None, hps.MinCount(2)):
        table.alter(admission=admission)
        assert table.spec.admission == admission
    table.lookup_or_insert([1, 2, 2])
    assert table.stats()["keys"] == 1
    for bad in (3, "min_count", hps.MinCount, {"n": 3}):
        with pytest.raises(hps.BadInputError, match=rf"{table.name}.*admission is .*MinCount"):
            table.alter(admission=bad)
    assert table.spec.admission == hps.MinCount(2)


def test_a_server_of_before_is_not_asked_in_silence() -> None:
    """It would let all keys in."""
    from hybridps.client import messages  # noqa: PLC0415
    from hybridps.verbs import Alter, CreateTable  # noqa: PLC0415
    from hybridps.verbs.calls import ServerInfo  # noqa: PLC0415

    old = ServerInfo(_core.__version__, 0, 1, 1 << 26, 1 << 20, features=frozenset(
        ("create_table", "alter")
    ))  # fmt: skip
    for call in (
        CreateTable(admitting(hps.MinCount(2)).to_json()),
        Alter(1, {"admission": hps.MinCount(2).options()}),
        Alter(1, {"admission": None}),
    ):
        with pytest.raises(hps.HybridPSError, match="admission"):
            messages.check_known(old, call, "s")
    messages.check_known(old, CreateTable(admitting(None).to_json()), "s")
    messages.check_known(old, Alter(1, {"dram": None}), "s")


def bits(table: Any) -> tuple[np.ndarray, np.ndarray]:
    keys = np.sort(np.concatenate([np.zeros(0, np.uint64), *table.keys()]))
    return keys, table.lookup(keys)


@pytest.mark.parametrize(
    "admission", [hps.MinCount(3), hps.MinCount(3, 2000), hps.Probability(0.2, 2000)]
)
def test_shards_and_dram_do_not_show(tmp_path: Path, admission: Any) -> None:
    """Replies of 96 KiB to 1.5 MiB: whole, and streamed in pieces."""
    spec = hps.TableSpec("t", 32, hps.Adagrad(0.1), seed=1, admission=admission)
    found = []
    for shards, dram in ((1, "8MiB"), (1, "300MiB"), (3, "8MiB")):
        with contextlib.ExitStack() as held:
            servers = [
                held.enter_context(
                    ServerProcess(tmp_path / f"{dram}-{shards}-{n}", "--shard", f"{n}/{shards}",
                                  dram=dram)
                )
                for n in range(shards)
            ]  # fmt: skip
            ps = held.enter_context(connect("tcp", urls_of(servers)))
            table, random = ps.create_table(spec), np.random.default_rng(5)
            for _ in range(8):
                keys = (60_000 * random.random(14_000) ** 2).astype(np.int64)
                rows = table.lookup_or_insert(keys)
                table.apply_gradients(keys, rows + np.float32(0.1))
            found.append(bits(table))
    for keys, rows in found[1:]:
        assert np.array_equal(keys, found[0][0])
        assert np.array_equal(rows.view(np.uint32), found[0][1].view(np.uint32))
    assert 1000 < len(found[0][0]) < 30_000


def test_counts_survive_a_stop_and_rows_a_kill(tmp_path: Path) -> None:
    spec, keys = admitting(hps.MinCount(3), "t"), np.arange(3000)
    random = np.random.default_rng(7)
    model = None
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        with ServerProcess(tmp_path / "d", dram="8MiB") as server:
            with hps.connect(server.url, timeout=60.0) as ps:
                table = ps.create_table(spec)
                model = model or Model(table, spec)
                model.table = table
                model.check(keys)
                train(model, random, 5)
                if end == signal.SIGKILL:
                    ps.flush()
                # Pushed behind the flush: the journal has it.
                named = np.array(sorted(model.rows)[:200])
                model.push(named, np.ones((len(named), DIM), np.float32))
            server.send(end)
            assert server.wait() == (0 if end == signal.SIGTERM else -end)
    with ServerProcess(tmp_path / "d", dram="8MiB") as server, hps.connect(server.url) as ps:
        model.table = ps.table("t")
        model.check(keys)
        assert len(model.counts) > 100


def test_a_kill_without_a_flush_admits_late_and_loses_no_trained_row(tmp_path: Path) -> None:
    spec, keys = admitting(hps.MinCount(2), "t"), np.arange(1000)
    with ServerProcess(tmp_path / "d", dram="8MiB") as server:
        with hps.connect(server.url, timeout=60.0) as ps:
            table = ps.create_table(spec)
            table.lookup_or_insert(keys)
            table.lookup_or_insert(keys[:300])
            table.apply_gradients(keys, np.ones((1000, DIM), np.float32))
            before = table.lookup(keys)
        server.send(signal.SIGKILL)
        server.wait()
    with ServerProcess(tmp_path / "d", dram="8MiB") as server, hps.connect(server.url) as ps:
        table = ps.table("t")
        rows, found = table.lookup(keys, return_found=True)
        assert np.array_equal(rows, before)
        assert found.sum() == 300
        table.lookup_or_insert(keys)
        assert len(table) == 300, "what was counted before is lost, and counted anew"
        table.lookup_or_insert(keys)
        assert len(table) == 1000


def test_candidates_are_in_the_account_and_in_the_plan(tmp_path: Path) -> None:
    spec = admitting(hps.MinCount(2, capacity=200_000), "t")
    with hps.connect(f"local:{tmp_path / 's'}", dram="64MiB", nvme="256MiB") as ps:
        table = ps.create_table(spec)
        table.lookup_or_insert(np.arange(200_000))
        stats = ps.stats()
        assert stats["candidates"] == 200_000
        assert stats["keys"] == 0
        assert stats["dram_candidates"] == stats["candidates_bytes"] <= 6 * 200_000
        planned = hps.plan(spec, 1000)
        assert stats["candidates_bytes"] <= planned.candidates_bytes
    plain = hps.plan(admitting(None, "t"), 1000)
    assert plain.candidates_bytes == 0
    large = hps.plan(admitting(hps.MinCount(2, capacity=50_000_000), "t"), 1000)
    assert large.dram_smallest > plain.dram_smallest + 200_000_000
