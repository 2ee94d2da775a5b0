"""Goal: batches split by server and come back whole. Method: laws, by Hypothesis, against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridps import placement
from hybridps.verbs.batches import TableRef, batch
from hybridps.verbs.router import ReadLimits, split

REF = TableRef("item", (1, 1, 1, 1, 1), 2)
IDS = st.lists(st.integers(0, 30), max_size=40)
SHARDS = st.integers(1, 5)


@given(IDS, SHARDS)
def test_parts_hold_each_key_once_at_its_owner(ids: list[int], shards: int) -> None:
    made = split(batch(REF, ids), shards)
    assert sorted(made.keys.tolist()) == sorted(set(ids))
    for shard in range(shards):
        part = made.keys[made.part(shard)]
        assert (placement.shards(part, shards) == shard).all()
    np.testing.assert_array_equal(made.keys[made.inverse], np.array(ids, np.uint64))
    expected = sorted(set(placement.shards(np.array(ids, np.uint64), shards).tolist())) or [0]
    assert made.shards() == expected


@given(IDS, SHARDS)
def test_rows_come_back_in_order(ids: list[int], shards: int) -> None:
    made = split(batch(REF, ids), shards)
    parts = [made.keys[made.part(shard)] for shard in made.shards()]
    rows = [np.stack([part, part + 1], 1).astype(np.float32) for part in parts]
    np.testing.assert_array_equal(made.rows(rows)[:, 0], np.array(ids, np.float32))
    found = made.found([part % 2 == 1 for part in parts])
    np.testing.assert_array_equal(found, np.array(ids) % 2 == 1)


@given(IDS, SHARDS, st.integers(0, 2**32 - 1))
def test_sums_counts_and_last(ids: list[int], shards: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((len(ids), 2)).astype(np.float32)
    counts = rng.integers(0, 2**32, len(ids), np.uint32)
    sums: dict[int, np.ndarray] = {}
    totals: dict[int, int] = {}
    for key, gradient, count in zip(ids, gradients, counts, strict=True):
        sums[key] = sums[key] + gradient if key in sums else gradient
        totals[key] = min(totals.get(key, 0) + int(count), 2**32 - 1)
    made = split(batch(REF, ids), shards)
    for keys, rows in made.sums(gradients).values():
        for key, row in zip(keys.tolist(), rows, strict=True):
            np.testing.assert_array_equal(row, sums[key])
    summed = made.counts(counts)
    assert summed is not None
    assert summed.tolist() == [totals[key] for key in made.keys.tolist()]
    ones = made.counts(None)
    times = [ids.count(key) for key in made.keys.tolist()]
    assert (ones is None and set(times) <= {1}) or ones.tolist() == times
    last = dict(zip(ids, gradients, strict=True))
    for key, row in zip(made.keys.tolist(), made.last(gradients), strict=True):
        np.testing.assert_array_equal(row, last[key])


@pytest.mark.parametrize("shards", [1, 2])
def test_sums_that_overflow_are_sent_unsummed(shards: int) -> None:
    huge = np.full((4, 2), 3e38, np.float32)
    made = split(batch(REF, [1, 2, 1, 3]), shards)
    parts = made.sums(huge)
    sent = np.concatenate([keys for keys, _ in parts.values()])
    assert sorted(sent.tolist()) == [1, 1, 2, 3]
    assert all(np.isfinite(rows).all() for _, rows in parts.values())


def test_placement_is_the_engines() -> None:
    assert placement.hash_keys(np.array([0, 1], np.uint64)).tolist() == [0, 0xB456_BCFC_34C2_CB2C]
    keys = np.arange(10_000, dtype=np.uint64)
    assert set(placement.buckets(keys).tolist()) <= set(range(placement.BUCKETS))
    assert placement.shards(keys, 1).max() == 0
    assert np.bincount(placement.shards(keys, 4)).min() > 2000


@given(st.integers(1, 1 << 20), st.integers(2048, 64 << 20), st.integers(1, 4096))
def test_a_read_of_the_most_keys_fits_both_ways(keys: int, frame_bytes: int, dim: int) -> None:
    most = ReadLimits().within(keys, frame_bytes).keys_max(dim)
    assert 1 <= most <= keys
    header = 128
    assert most == 1 or header + most * (4 * dim + 1) <= frame_bytes
    assert header + most * (8 + 4) <= frame_bytes


def test_limits_are_never_above_the_defaults() -> None:
    assert ReadLimits().within(1 << 40, 1 << 40) == ReadLimits()
    assert split(batch(REF, [1]), 1).read_keys_max == ReadLimits().keys_max(2) == 1 << 20
