"""Goal: what is exported is the table, and what is imported is the file, in every format and over
every transport; what does not fit is named before anything changes.

Method: round trips bit for bit, slots by a further step of training; files of other programs, and
files that were cut, forged or made for other tables.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import LOCAL, fresh_name, needs_server

import hybridps as hps

DIM = 4
KEYS = np.arange(-3000, 3000)


def has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


FORMATS = [
    "npz",
    "safetensors",
    pytest.param("parquet", marks=pytest.mark.skipif(not has("pyarrow"), reason="pyarrow: absent")),
]


@pytest.fixture(
    params=[
        "local",
        pytest.param("shards", marks=needs_server),
        pytest.param("tcp-aio", marks=needs_server),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    """Some transports: what differs between the others lies below these verbs."""
    return str(request.param)


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file to be, one of each format."""
    folder = tmp_path / "files"
    folder.mkdir()
    return folder / f"table.{request.param}"


@pytest.fixture
def trained(ps: Any) -> Any:
    """A table of 6000 rows with slots and statistics; every number is its own."""
    spec = hps.TableSpec(fresh_name(), DIM, hps.Adam(0.1), hps.Normal(std=1), seed=3)
    table = ps.create_table(spec)
    table.lookup_or_insert(KEYS, counts=(np.abs(KEYS) % 9 + 1).astype(np.uint32))
    table.apply_gradients(KEYS, gradients(1))
    table.apply_gradients(KEYS[::3], gradients(2)[::3])
    return table


def gradients(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(KEYS), DIM)).astype(np.float32)


def another(ps: Any, **changes: Any) -> Any:
    """An empty table, of the optimizer of those that were trained."""
    given = {"dim": DIM, "optimizer": hps.Adam(0.1), "initializer": hps.Zeros()} | changes
    return ps.create_table(hps.TableSpec(fresh_name(), **given))


def alone(path: Path) -> None:
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_values_come_back_bit_for_bit(ps: Any, trained: Any, path: Path) -> None:
    told: list[int] = []
    assert trained.export_to(path, progress=told.append) == len(KEYS)
    assert sum(told) == len(KEYS)
    alone(path)
    copy = another(ps, optimizer=hps.SGD(0.5))
    copy.assign([5, 10**6], np.ones((2, DIM), np.float32))
    assert copy.import_from(str(path)) == len(KEYS)
    np.testing.assert_array_equal(copy.lookup(KEYS), trained.lookup(KEYS))
    assert (copy.lookup([10**6]) == 1).all(), "what the file does not name stays"
    assert (copy.statistics(KEYS).frequency == 0).all()


def test_slots_and_statistics_come_back(ps: Any, trained: Any, path: Path) -> None:
    """Both go on from there alike, and remember how often each key was seen."""
    trained.export_to(path, slots=True)
    copy = another(ps)
    assert copy.import_from(path) == len(KEYS)
    before, after = trained.statistics(KEYS), copy.statistics(KEYS)
    np.testing.assert_array_equal(before.frequency, after.frequency)
    np.testing.assert_array_equal(before.last_seen, after.last_seen)
    for table in (trained, copy):
        table.apply_gradients(KEYS, gradients(4))
    np.testing.assert_array_equal(copy.lookup(KEYS), trained.lookup(KEYS))


def test_statistics_without_slots(ps: Any, trained: Any, path: Path) -> None:
    trained.export_to(path, statistics=True)
    copy = another(ps, optimizer=hps.Adagrad(0.1))
    copy.import_from(path)
    np.testing.assert_array_equal(copy.lookup(KEYS), trained.lookup(KEYS))
    np.testing.assert_array_equal(
        copy.statistics(KEYS).frequency, trained.statistics(KEYS).frequency
    )
    plain = another(ps)
    with pytest.raises(hps.BadInputError, match="column slots is missing"):
        plain.import_from(path, slots=True)


def test_tiny_vectors_are_left_out(ps: Any, table: Any, path: Path) -> None:
    rows = np.float32([[0, 0, 0, 0], [1e-3, 0, 0, 0], [0, 0, 0, -1e-2], [1e-4, 1e-4, 9e-4, 0]])
    table.assign([1, 2, 3, 4], rows)
    assert table.export_to(path, cutoff=1e-3) == 2
    copy = another(ps)
    copy.import_from(path)
    _, found = copy.lookup([1, 2, 3, 4], return_found=True)
    assert found.tolist() == [False, True, True, False]
    for wrong in (-1, float("nan"), "tiny", True):
        with pytest.raises(hps.BadInputError, match="cutoff is"):
            table.export_to(path, cutoff=wrong)


def test_an_empty_table_is_a_file_too(ps: Any, table: Any, path: Path) -> None:
    assert table.export_to(path, slots=True) == 0
    assert another(ps).import_from(path, slots=False) == 0


def test_reading_leaves_no_trace(trained: Any, path: Path) -> None:
    before, stats = trained.statistics(KEYS), trained.stats()
    trained.export_to(path, slots=True)
    after = trained.statistics(KEYS)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    now = trained.stats()
    same = ("keys", "rows_dram", "cache_hits", "cache_misses", "device_reads", "evictions")
    assert {name: now[name] for name in same} == {name: stats[name] for name in same}


def test_what_does_not_fit_changes_nothing(ps: Any, trained: Any, path: Path) -> None:
    trained.export_to(path, slots=True)
    wide = another(ps, dim=DIM + 1)
    adagrad = another(ps, optimizer=hps.Adagrad(0.1))
    for table, reason in (
        (wide, rf"value of float32\[n, {DIM}\] does not fit.*value of float32\[n, {DIM + 1}\]"),
        (adagrad, r"slots are of Adam, those of .* of Adagrad; .*slots=False"),
    ):
        with pytest.raises(hps.BadInputError, match=reason):
            table.import_from(path)
        assert table.stats()["keys"] == 0
    assert adagrad.import_from(path, slots=False) == len(KEYS)


def test_cut_files_are_refused_whole(ps: Any, trained: Any, path: Path) -> None:
    trained.export_to(path, slots=True)
    whole = path.read_bytes()
    copy = another(ps)
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(hps.BadInputError, match="table"):
            copy.import_from(path)
    assert copy.stats()["keys"] == 0


def test_what_is_not_finite_is_named_before_anything_changes(table: Any, path: Path) -> None:
    keys = np.arange(200_000, dtype=np.uint64)
    value = np.ones((len(keys), DIM), np.float32)
    value[150_001, 2] = np.nan
    write(path, key=keys, value=value)
    with pytest.raises(hps.BadInputError, match=r"key 150001 \(row 150001\) hold nan at column 2"):
        table.import_from(path)
    assert table.stats()["keys"] == 0


def write(path: Path, **columns: np.ndarray) -> None:
    """A file as another program writes it."""
    if path.suffix == ".npz":
        np.savez_compressed(path, **columns)
    elif path.suffix == ".safetensors":
        save = pytest.importorskip("safetensors.numpy").save_file
        save(columns, path)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        lists = {
            name: pyarrow.array(list(column) if column.ndim > 1 else column)
            for name, column in columns.items()
        }
        parquet.write_table(pyarrow.table(lists), path)


def test_files_of_other_programs(table: Any, path: Path) -> None:
    """Signed keys, compressed arrays, lists; repeated keys: the last one."""
    keys = np.array([-1, 7, -1], np.int64)
    value = np.arange(3 * DIM, dtype=np.float32).reshape(3, DIM)
    write(path, key=keys, value=value)
    assert table.import_from(path) == 3
    np.testing.assert_array_equal(table.lookup([-1, 7]), value[[2, 1]])
    for columns, reason in (
        ({"key": keys}, "column value is missing"),
        ({"value": value}, "column key is missing"),
        ({"key": keys, "value": value.astype(np.float64)}, "value of float64"),
        ({"key": keys.astype(np.float32), "value": value}, "key of float32"),
        ({"key": keys[:, None], "value": value}, "key of int64"),
    ):
        write(path, **columns)
        with pytest.raises(hps.BadInputError, match=reason):
            table.import_from(path)


def test_names_and_folders_that_do_not_do(table: Any, tmp_path: Path) -> None:
    for wrong in ("table.csv", "table"):
        with pytest.raises(hps.BadInputError, match="ends in none of"):
            table.export_to(tmp_path / wrong)
        with pytest.raises(hps.BadInputError, match="ends in none of"):
            table.import_from(tmp_path / wrong)
    with pytest.raises(hps.BadInputError, match="no such file"):
        table.import_from(tmp_path / "table.npz")
    with pytest.raises(hps.BadInputError, match=r"nowhere.*No such file or directory"):
        table.export_to(tmp_path / "nowhere" / "table.npz")


def test_other_programs_read_our_files(table: Any, path: Path) -> None:
    keys = np.array([2**63 + 5, 7], np.uint64)
    value = np.arange(2 * DIM, dtype=np.float32).reshape(2, DIM)
    table.assign(keys, value)
    table.lookup_or_insert([7])
    table.export_to(path, statistics=True)
    for columns in loaded(path):
        order = np.argsort(columns["key"])[::-1]
        np.testing.assert_array_equal(np.asarray(columns["key"])[order], keys)
        np.testing.assert_array_equal(np.stack(list(columns["value"]))[order], value)
        assert np.asarray(columns["frequency"])[order].tolist() == [0, 1]


def loaded(path: Path) -> Iterator[Any]:
    """What other programs see."""
    if path.suffix == ".npz":
        yield np.load(path, allow_pickle=False)
    elif path.suffix == ".safetensors":
        yield pytest.importorskip("safetensors.numpy").load_file(path)
    else:
        yield pytest.importorskip("pandas").read_parquet(path)
        duckdb = pytest.importorskip("duckdb")
        yield duckdb.read_parquet(str(path)).fetchnumpy()


def test_a_pickled_array_is_never_loaded(table: Any, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.npz", tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(mark),))

    np.savez(path, key=np.array([Evil()], object), value=np.ones((1, DIM), np.float32))
    with pytest.raises(hps.BadInputError, match="'key' is pickled"):
        table.import_from(path)
    assert not mark.exists()


def test_hostile_headers(table: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    described = {"dtype": "F32", "shape": [1, DIM], "data_offsets": [8, 24]}
    key = {"dtype": "U64", "shape": [1], "data_offsets": [0, 8]}
    for header, reason in (
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no object"),
        (b'{"key": 7}', "'key' is not described whole"),
        (json.dumps({"key": key | {"shape": [2**62]}, "value": described}).encode(), "shape"),
        (json.dumps({"key": key | {"data_offsets": [0, 2**63]}}).encode(), "lies at 0 to"),
        (json.dumps({"key": key | {"data_offsets": [-8, 0]}}).encode(), "lies at -8"),
        (json.dumps({"key": key, "value": described | {"shape": [2, DIM]}}).encode(), "takes 16"),
        (json.dumps({"key": key, "__metadata__": {"a": 1}}).encode(), "no texts by name"),
    ):
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
        with pytest.raises(hps.BadInputError, match=reason):
            table.import_from(path)
    path.write_bytes(struct.pack("<Q", 2**63) + bytes(100))
    with pytest.raises(hps.BadInputError, match="a header of 9223372036854775808 bytes"):
        table.import_from(path)
    path = tmp_path / "table.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("key.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"{" * 20)
    with pytest.raises(hps.BadInputError, match="'key' cannot be read"):
        table.import_from(path)
    assert table.stats()["keys"] == 0


def test_under_training_load_each_row_is_some_committed_version(
    ps: Any, path: Path, kind: str
) -> None:
    """A row of which all columns are not of one push would be torn; a key would be there twice."""
    spec = hps.TableSpec(fresh_name(), 64, hps.SGD(1.0), hps.Zeros())
    table = ps.create_table(spec)
    keys = np.arange(20_000)
    table.lookup_or_insert(keys)
    done = threading.Event()
    pushes = [0]

    def train() -> None:
        while not done.is_set():
            table.apply_gradients(keys, np.full((len(keys), 64), -1, np.float32))
            pushes[0] += 1

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        while not pushes[0]:
            done.wait(0.01)
        first = pushes[0]
        assert table.export_to(path) == len(keys)
    finally:
        done.set()
        trainer.join()
    copy = ps.create_table(hps.TableSpec(fresh_name(), 64, hps.SGD(1.0), hps.Zeros()))
    copy.import_from(path)
    rows, found = copy.lookup(keys, return_found=True)
    assert found.all()
    assert (rows == rows[:, :1]).all(), "every row is of one push"
    assert rows.min() >= (first if "shards" not in kind else first - 1)
    assert rows.max() <= pushes[0]


def test_memory_does_not_grow_with_the_table(tmp_path: Path, path: Path) -> None:
    """A table of 38 MiB, most of it on NVMe, to a file and back within some mebibytes."""
    dim, keys = 64, np.arange(150_000)
    with hps.connect(f"local:{tmp_path / 'store'}", dram="16MiB", nvme="512MiB") as ps:
        spec = hps.TableSpec("t", dim, hps.SGD(0.5), hps.Normal(std=1))
        table = ps.create_table(spec)
        for some in np.array_split(keys, 10):
            table.lookup_or_insert(some)
        tracemalloc.start()
        try:
            assert table.export_to(path, statistics=True) == len(keys)
            assert table.import_from(path) == len(keys)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert path.stat().st_size > 36 << 20
        assert peak < 12 << 20
        for some in np.array_split(keys, 10):
            np.testing.assert_array_equal(table.lookup(some), spec.initial_rows(some))


def test_a_process_killed_in_the_middle_leaves_no_file_of_that_name(
    tmp_path: Path, path: Path
) -> None:
    script = """
import os, signal, sys, hybridps as hps, numpy as np
store, path = sys.argv[1:]
with hps.connect(f"local:{store}", dram="16MiB", nvme="64MiB") as ps:
    table = ps.create_table(hps.TableSpec("t", 16, hps.SGD(0.5)))
    table.lookup_or_insert(np.arange(100_000))
    told = []
    def progress(rows):
        told.append(rows)
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    table.export_to(path, progress=progress)
"""
    store = str(tmp_path / "store")
    ended = subprocess.run([sys.executable, "-c", script, store, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not path.exists()


def test_an_import_that_was_acknowledged_survives_a_kill(tmp_path: Path, path: Path) -> None:
    """It comes back from the journal: values, slots and statistics."""
    script = """
import os, signal, sys, hybridps as hps
with hps.connect(f"local:{sys.argv[1]}", dram="8MiB", nvme="64MiB", durability="process") as ps:
    table = ps.create_table(hps.TableSpec("t", 4, hps.Adam(0.1), hps.Zeros()))
    table.lookup_or_insert([7, 8])
    table.import_from(sys.argv[2])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with hps.connect(f"local:{tmp_path / 'first'}", dram="8MiB", nvme="64MiB") as ps:
        first = ps.create_table(hps.TableSpec("t", DIM, hps.Adam(0.1), hps.Normal(std=1)))
        first.lookup_or_insert(KEYS, counts=(np.abs(KEYS) % 9 + 1).astype(np.uint32))
        first.apply_gradients(KEYS, gradients(1))
        first.export_to(path, slots=True)
        second = str(tmp_path / "second")
        ended = subprocess.run([sys.executable, "-c", script, second, str(path)], check=False)
        assert ended.returncode == -signal.SIGKILL
        with hps.connect(f"local:{second}", dram="8MiB", nvme="64MiB") as other:
            copy = other.table("t")
            for name in ("frequency", "last_seen"):
                np.testing.assert_array_equal(
                    copy.statistics(KEYS)[name], first.statistics(KEYS)[name]
                )
            for table in (first, copy):
                table.apply_gradients(KEYS, gradients(2))
            np.testing.assert_array_equal(copy.lookup(KEYS), first.lookup(KEYS))


def test_a_failure_in_the_middle_leaves_nothing(table: Any, path: Path, kind: str) -> None:
    table.lookup_or_insert(np.arange(1000))

    def fail(_rows: int) -> None:
        raise RuntimeError("stop")

    path.write_bytes(b"the one before")
    with pytest.raises(RuntimeError, match="stop"):
        table.export_to(path, progress=fail)
    alone(path)
    assert path.read_bytes() == b"the one before"
    assert kind in LOCAL or len(table.lookup([1])) == 1
