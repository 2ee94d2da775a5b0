"""Goal: `statistics` tells what training reads left behind, of every tier, and leaves nothing
itself.

Method: counts and times of known calls; counters of the store before and after.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridps as hps


def test_counts_and_times_are_those_of_training_reads(table: Any) -> None:
    start = int(time.time())
    table.lookup_or_insert([7, 7, 5], counts=[2, 3, 1])
    table.assign([9], np.ones((1, 4), np.float32))
    table.lookup([7, 5, 9])
    keys = np.array([[5, 99], [7, 9]])
    told = table.statistics(keys)
    frequency, last_seen, tier, found = told
    assert frequency.tolist() == [[1, 0], [5, 0]]
    assert found.tolist() == [[True, False], [True, True]]
    assert tier.tolist() == [["dram", ""], ["dram", "dram"]]
    assert last_seen[0, 1] == 0
    assert (last_seen[found] >= start).all(), "assigned is seen, too: it does not expire at once"
    assert (last_seen <= time.time()).all()
    assert (frequency.dtype, last_seen.dtype, found.dtype) == (np.uint32, np.int64, np.bool_)
    assert told["tier"] is told.tier is told[2]


def test_shapes_and_repeats(table: Any) -> None:
    table.lookup_or_insert("a text")
    table.lookup_or_insert([3])
    told = table.statistics("a text")
    assert (told.frequency.shape, int(told.frequency), bool(told.found)) == ((), 1, True)
    assert [array.shape for array in table.statistics([])] == [(0,)] * 4
    assert table.statistics([3, 3, 4, 3]).found.tolist() == [True, True, False, True]
    with pytest.raises(hps.BadInputError):
        table.statistics([1.5])


def test_more_keys_than_one_call_takes(table: Any) -> None:
    keys = np.arange(150_000)
    table.lookup_or_insert(keys[::1000])
    told = table.statistics(keys)
    assert told.found.sum() == 150
    assert told.found[::1000].all()


def test_nothing_is_inserted_counted_or_moved(tmp_path: Path) -> None:
    """Of rows in DRAM nothing is read; of those on NVMe no more than each once."""
    keys, dim = np.arange(30_000), 64
    with hps.connect(f"local:{tmp_path / 'store'}", dram="8MiB", nvme="64MiB") as ps:
        table = ps.create_table(hps.TableSpec("t", dim, hps.SGD(0.5)))
        for some in np.array_split(keys, 10):
            table.lookup_or_insert(some, counts=(some % 7 + 1).astype(np.uint32))
        ps.flush()
        tiers, before = table.statistics(keys).tier, table.stats()
        on_nvme = int((tiers == "nvme").sum())
        assert 1000 < on_nvme < len(keys)
        told = table.statistics(np.append(keys, keys + len(keys)))
        after = table.stats()
        np.testing.assert_array_equal(told.tier[: len(keys)], tiers)
        np.testing.assert_array_equal(told.frequency[: len(keys)], keys % 7 + 1)
        assert not told.found[len(keys) :].any()
        same = ("keys", "rows_dram", "rows_nvme", "cache_hits", "cache_misses", "device_reads")
        assert {name: after[name] for name in same} == {name: before[name] for name in same}
        reads = after["background_reads"] - before["background_reads"]
        assert 0 < reads <= on_nvme
        assert before["rows_nvme"] == on_nvme
    with hps.connect(f"local:{tmp_path / 'store'}", dram="8MiB", nvme="64MiB") as ps:
        told = ps.table("t").statistics(keys)
        np.testing.assert_array_equal(told.frequency, keys % 7 + 1)
        assert (told.last_seen > 1_700_000_000).all()
