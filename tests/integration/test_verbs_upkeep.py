"""Goal: scrub and inspect are the same over every transport, find what is damaged and change
nothing else.

Method: as `test_verbs_rows`; a byte of a record is flipped where inspect says that it lies.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import LOCAL, connect

import hybridps as hps

KEYS = np.arange(1, 30_001, dtype=np.uint64)
DIM = 64


def filled(ps: Any) -> Any:
    """A table that is larger than the DRAM of its store."""
    table = ps.create_table(hps.TableSpec("upkeep", DIM, hps.SGD(0.5)))
    for keys in np.array_split(KEYS, 10):
        table.assign(keys, np.repeat(keys.astype(np.float32)[:, None], DIM, axis=1))
    ps.flush()
    return table


@pytest.fixture(params=["local", "local-aio"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A client of a store of 8 MiB in this process, and the directory."""
    path = tmp_path / "small"
    with connect(request.param, f"local:{path}", dram="8MiB", nvme="64MiB") as ps:
        yield ps, path


def test_inspect_tells_of_each_key_in_order(ps: Any, table: Any) -> None:
    rows = table.lookup_or_insert([7, 7, 5], counts=[2, 3, 1])
    told = table.inspect([5, 99, 7, 5])
    assert [row.key for row in told] == [5, 99, 7, 5]
    assert [row.frequency for row in told] == [1, 0, 5, 1]
    assert [row.tier for row in told] == ["dram", None, "dram", "dram"]
    np.testing.assert_allclose(told[2].norm, np.linalg.norm(rows[0].astype(np.float64)))
    assert told[0].last_seen > 1_700_000_000
    assert (told[1].last_seen, told[1].norm, told[1].place, told[1].error) == (0, 0, None, None)
    assert told[0].dirty
    assert told[0].place is None
    ps.flush()
    assert table.inspect([5, 7])[1].frequency == 5
    assert table.inspect([]) == []
    assert table.inspect("a text")[0].key == hps.key_of("a text")
    assert table.size() == 2 if hasattr(table, "size") else len(table) == 2


def test_what_inspect_refuses(ps: Any, table: Any) -> None:
    with pytest.raises(hps.BadInputError, match="give at most 65536"):
        table.inspect(np.arange(200_000))
    with pytest.raises(hps.BadInputError):
        table.inspect([1.5])
    ps.drop_table(table.name)
    with pytest.raises(hps.TableNotFoundError, match="dropped"):
        table.inspect([1])


def test_a_sound_store_is_clean(ps: Any, table: Any, kind: str) -> None:
    table.assign([1, 2], np.ones((2, 4), np.float32))
    ps.flush()
    steps = list(ps.scrub(step="256KiB"))
    # Where there is a journal, rows that stay in DRAM are not on the device by a flush.
    assert sum(step.records for step in steps) >= (2 if kind in LOCAL else 0)
    assert [step.next for step in steps].count(None) == (2 if "shards" in kind else 1)
    assert [step.damaged for step in steps] == [()] * len(steps)
    for wrong in (0, "much"):
        with pytest.raises(hps.BadInputError):
            list(ps.scrub(step=wrong))


def test_damage_is_named_until_it_is_assigned(small: Any) -> None:
    ps, path = small
    table = filled(ps)
    lost = next(row for row in table.inspect(KEYS) if row.tier == "nvme")
    flip(path, lost.place + 40)
    found = [found for step in ps.scrub() for found in step.damaged]
    assert found == [hps.Damaged("upkeep", lost.key, lost.place, "lost")]
    (told,) = table.inspect([lost.key])
    assert told.error is not None
    with pytest.raises(hps.CorruptionError):
        table.lookup([lost.key])
    assert ps.stats()["scrub_damaged"] == 1
    # It was met by the scrub, the look and the call.
    assert ps.stats()["corrupt_records"] == 3
    table.assign([lost.key], np.ones((1, DIM), np.float32))
    fates = [found.fate for step in ps.scrub() for found in step.damaged]
    assert fates == ["freed"]
    others = KEYS[lost.key != KEYS]
    np.testing.assert_array_equal(table.lookup(others)[:, 0], others.astype(np.float32))


def flip(path: Path, offset: int) -> None:
    """Changes a byte of the log."""
    with (path / "rows.log").open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))
