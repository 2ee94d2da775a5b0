"""Goal: damaged bytes on the device cost their own row, are told as such, and can be repaired.
Method: a store is closed, a byte of some records is flipped in `rows.log`, and it is opened again,
in the process and behind a server."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.server import ServerProcess

import hybridps as hps

DIM = 16
SPEC = hps.TableSpec("item", DIM, hps.Adagrad(0.1), hps.Normal(std=0.1), seed=3)
# Their bytes are found nowhere but in their records and footers.
KEYS = (np.arange(1, 2001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def flip(log: Path, key: int, floats: int) -> int:
    """Flips a byte in the row of every record of `key`; returns how many there were."""
    found = bytes_of(log)
    pattern, length = struct.pack("<q", key), struct.pack("<I", floats)
    at, flipped = found.find(pattern), 0
    while at >= 0:
        if at % 16 == 0 and found[at + 28 : at + 32] == length:
            found[at + 40] ^= 0x10
            flipped += 1
        at = found.find(pattern, at + 1)
    log.write_bytes(found)
    return flipped


def bytes_of(path: Path) -> bytearray:
    return bytearray(path.read_bytes())


@contextmanager
def local(data: Path) -> Iterator[Any]:
    with hps.connect(f"local:{data}", dram="8MiB", nvme="64MiB") as ps:
        yield ps


@contextmanager
def served(data: Path) -> Iterator[Any]:
    with ServerProcess(data, dram="8MiB", nvme="64MiB") as server:
        with hps.connect(server.url) as ps:
            yield ps
        server.stop()


@pytest.mark.parametrize("opened", [local, served])
def test_a_damaged_row_is_told_counted_and_repaired(tmp_path: Path, opened: Any) -> None:
    data = tmp_path / "store"
    with opened(data) as ps:
        table = ps.create_table(SPEC)
        table.apply_gradients(KEYS, np.ones((len(KEYS), DIM), np.float32))
        rows = table.lookup(KEYS)
    bad, gone = int(KEYS[123]), int(KEYS[1500])
    for key in (bad, gone):
        assert flip(data / "rows.log", key, 2 * DIM) == 1
    sound = np.array([key for key in KEYS if key not in (bad, gone)])
    with opened(data) as ps:
        table = ps.create_table(SPEC)
        expected = rows[np.isin(KEYS, sound)]
        np.testing.assert_array_equal(table.lookup(sound), expected)
        for call in (table.lookup, table.lookup_or_insert):
            with pytest.raises(hps.CorruptionError, match=r"rows\.log"):
                call([bad])
        with pytest.raises(hps.CorruptionError):
            table.apply_gradients([sound[0], bad], np.ones((2, DIM), np.float32))
        np.testing.assert_array_equal(table.lookup(sound), expected)
        assert table.stats()["corrupt_records"] >= 3
        table.assign([bad], np.full((1, DIM), 7.0, np.float32))
        assert table.remove([gone]) == 1
        assert (table.lookup([bad]) == 7.0).all()
        assert not table.lookup([gone]).any()
    with opened(data) as ps:
        table = ps.create_table(SPEC)
        assert (table.lookup([bad]) == 7.0).all()
        np.testing.assert_array_equal(table.lookup(sound), expected)
        assert table.stats()["corrupt_records"] == 0
