"""Stores of fixed rows by 64-bit key: hybridps, RocksDB by its C++ library, RocksDB by its wheel.

Each takes batches of unique keys and gives float32 rows. A peer that is not installed says so by
name and is left out.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import hybridps as hps

Keys = NDArray[np.uint64]
Rows = NDArray[np.float32]

WRITE_BUFFERS = 16 << 20
ROCKSDB_THREADS = 16
HEADERS = (Path("/usr/include/rocksdb/db.h"), Path("/usr/local/include/rocksdb/db.h"))


class MissingError(Exception):
    """The peer is not installed here; the text says what to install."""


class Store(Protocol):
    """What the benchmark asks of a store."""

    name: str

    def get(self, keys: Keys) -> Rows:
        """float32[n, dim] of unique keys that are all present."""

    def put(self, keys: Keys, rows: Rows) -> None:
        """New values of unique keys."""

    def settle(self, *, whole: bool) -> None:
        """Lets background work end; `whole`: rewrites everything once, as after a load."""

    def close(self) -> None:
        """Gives files and memory up."""


class Hybridps:
    """This project, in the process, with SGD so that a row is its value."""

    name = "hybridps"

    def __init__(self, directory: Path, dim: int, dram: int, nvme: int) -> None:
        self.ps = hps.connect(f"local:{directory}", dram=dram, nvme=nvme, durability="none")
        self.table = self.ps.create_table(hps.TableSpec("bench", dim=dim, optimizer=hps.SGD(0.1)))

    def get(self, keys: Keys) -> Rows:
        return self.table.lookup(keys)

    def put(self, keys: Keys, rows: Rows) -> None:
        self.table.assign(keys, rows)

    def settle(self, *, whole: bool) -> None:
        del whole
        self.ps.flush()

    def moved_bytes(self) -> tuple[int, int]:
        """(bytes read, bytes written) so far, in the background too."""
        stats = self.ps.stats()
        return stats["device_bytes_read"], stats["device_bytes_written"]

    def close(self) -> None:
        self.ps.close()


class RocksDb:
    """The C++ library behind rocksdb.cc, with 16 threads."""

    name = "rocksdb"

    def __init__(self, directory: Path, dim: int, dram: int, nvme: int) -> None:
        del nvme
        self.dim = dim
        self.library = compiled(directory)
        self.store = self.library.store_open(
            str(directory / "db").encode(), dram - WRITE_BUFFERS, WRITE_BUFFERS
        )
        if not self.store:
            raise MissingError("RocksDB could not be opened here")

    def get(self, keys: Keys) -> Rows:
        rows = np.empty((len(keys), self.dim), np.float32)
        if not self.library.store_get(
            self.store, address(keys), len(keys), address(rows), 4 * self.dim, ROCKSDB_THREADS
        ):
            raise RuntimeError("RocksDB lost a row")
        return rows

    def put(self, keys: Keys, rows: Rows) -> None:
        if not self.library.store_put(
            self.store, address(keys), len(keys), address(rows), 4 * self.dim
        ):
            raise RuntimeError("RocksDB refused a write")

    def settle(self, *, whole: bool) -> None:
        self.library.store_settle(self.store, int(whole))

    def close(self) -> None:
        self.library.store_close(self.store)


def compiled(directory: Path) -> ctypes.CDLL:
    """The shared library of rocksdb.cc, built into `directory`."""
    if not any(header.is_file() for header in HEADERS) or shutil.which("g++") is None:
        raise MissingError("install g++ and RocksDB's headers, Debian's librocksdb-dev")
    source, library = Path(__file__).with_name("rocksdb.cc"), directory / "librocks.so"
    subprocess.run(
        ["g++", "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", str(source), "-o",
         str(library), "-lrocksdb"],
        check=True,
    )  # fmt: skip
    loaded = ctypes.CDLL(str(library))
    loaded.store_open.restype = ctypes.c_void_p
    loaded.store_open.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64]
    arrays = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64]
    loaded.store_put.argtypes = arrays
    loaded.store_get.argtypes = [*arrays, ctypes.c_int]
    loaded.store_settle.argtypes = [ctypes.c_void_p, ctypes.c_int]
    loaded.store_close.argtypes = [ctypes.c_void_p]
    return loaded


def address(array: NDArray) -> ctypes.c_void_p:
    """Where a contiguous array begins."""
    return ctypes.c_void_p(array.ctypes.data)


class RocksDict:
    """RocksDB as its Python wheel gives it: one thread, no io_uring."""

    name = "rocksdict"

    def __init__(self, directory: Path, dim: int, dram: int, nvme: int) -> None:
        del nvme
        try:
            import rocksdict  # noqa: PLC0415 - optional
        except ImportError as error:
            raise MissingError("pip install rocksdict") from error
        self.rocksdict, self.dim = rocksdict, dim
        options = rocksdict.Options(raw_mode=True)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_use_direct_reads(True)
        options.set_use_direct_io_for_flush_and_compaction(True)
        options.set_write_buffer_size(WRITE_BUFFERS // 2)
        options.set_max_background_jobs(2)
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(rocksdict.Cache(dram - WRITE_BUFFERS))
        blocks.set_bloom_filter(10, False)
        blocks.set_cache_index_and_filter_blocks(True)
        options.set_block_based_table_factory(blocks)
        self.db = rocksdict.Rdict(str(directory / "db"), options)
        unlogged = rocksdict.WriteOptions()
        unlogged.disable_wal = True
        self.db.set_write_options(unlogged)

    def get(self, keys: Keys) -> Rows:
        values = self.db.get(names(keys))
        return np.frombuffer(b"".join(values), np.float32).reshape(len(keys), self.dim)

    def put(self, keys: Keys, rows: Rows) -> None:
        batch = self.rocksdict.WriteBatch(raw_mode=True)
        for name, row in zip(names(keys), rows, strict=True):
            batch.put(name, row.tobytes())
        self.db.write(batch)

    def settle(self, *, whole: bool) -> None:
        self.db.flush()
        if whole:
            self.db.compact_range(None, None)

    def close(self) -> None:
        self.db.close()


def names(keys: Keys) -> list[bytes]:
    """Keys as bytes in the order of their numbers."""
    joined = keys.astype(">u8").tobytes()
    return [joined[start : start + 8] for start in range(0, len(joined), 8)]


ALL = (Hybridps, RocksDb, RocksDict)
