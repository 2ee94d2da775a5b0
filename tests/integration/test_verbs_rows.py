"""Goal: the verbs of rows mean the same over every transport.

Method: each test runs over the store in this process, TCP, unix sockets and two shards, through the
blocking and the asyncio client, and compares with NumPy.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest

import hybridps as hps

KEYS = np.array([[5, -1, 7], [5, 2**40, 0]], np.int64)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_lookup_of_absent_keys_is_zeros_and_inserts_nothing(table: Any) -> None:
    rows, found = table.lookup(KEYS, return_found=True)
    assert rows.shape == (2, 3, 4)
    assert rows.dtype == np.float32
    assert not rows.any()
    assert found.shape == (2, 3)
    assert found.dtype == np.bool_
    assert not found.any()
    assert len(table) == 0


def test_lookup_or_insert_gives_the_initial_rows(table: Any, spec: hps.TableSpec) -> None:
    rows = table.lookup_or_insert(KEYS)
    np.testing.assert_array_equal(rows, spec.initial_rows(KEYS))
    assert len(table) == 5
    again, found = table.lookup([5, 6], return_found=True)
    np.testing.assert_array_equal(again[0], rows[0, 0])
    assert found.tolist() == [True, False]


def test_results_are_the_callers_own(table: Any) -> None:
    for rows in (table.lookup_or_insert([1, 2]), table.lookup([1, 2]), table.lookup([1, 1])):
        assert rows.flags.c_contiguous
        assert rows.flags.writeable
        rows[:] = 7
    assert not (table.lookup([1, 2]) == 7).any()


@pytest.mark.parametrize("keys", [9, np.uint64(9), np.int8(9), "nine", np.array(9)])
def test_one_key_has_one_row(table: Any, keys: Any) -> None:
    row = table.lookup_or_insert(keys)
    assert row.shape == (4,)
    table.apply_gradients(keys, ones(4))
    np.testing.assert_array_equal(table.lookup(keys), row - np.float32(0.5))
    found = table.lookup(keys, return_found=True)[1]
    assert found.shape == ()
    assert bool(found)
    assert table.remove(keys) == 1


@pytest.mark.parametrize("keys", [[], np.zeros((0, 3), np.int32), (), range(0)])
def test_empty_batches_are_legal(table: Any, keys: Any) -> None:
    shape = (*np.shape(keys), 4)
    rows, found = table.lookup(keys, return_found=True)
    assert rows.shape == shape
    assert found.shape == shape[:-1]
    assert table.lookup_or_insert(keys).shape == shape
    table.apply_gradients(keys, np.zeros(shape, np.float32))
    table.assign(keys, np.zeros(shape, np.float32))
    assert table.remove(keys) == 0
    assert len(table) == 0


def test_gradients_of_repeated_keys_are_summed_in_order(table: Any) -> None:
    rows = table.lookup_or_insert([1, 2])
    # In this order float32 loses the small numbers, in another it would not.
    numbers = np.array([1e8, 1, -1e8, 1], np.float32)
    gradients = np.repeat(numbers[:, None], 4, axis=1)
    table.apply_gradients([1, 1, 1, 1], gradients)
    total = np.float32(0)
    for number in numbers:
        total += number
    np.testing.assert_array_equal(table.lookup(1), rows[0] - np.float32(0.5) * total)
    np.testing.assert_array_equal(table.lookup(2), rows[1])


def test_gradients_create_absent_rows(table: Any, spec: hps.TableSpec) -> None:
    table.apply_gradients(KEYS, ones(2, 3, 4))
    times = np.array([[2, 1, 1], [2, 1, 1]], np.float32)[..., None]
    expected = spec.initial_rows(KEYS) - np.float32(0.5) * times
    np.testing.assert_array_equal(table.lookup(KEYS), expected)


def test_half_gradients_are_widened(table: Any) -> None:
    rows = table.lookup_or_insert([1, 2])
    halves = np.array([[0.1] * 4, [0.2] * 4], np.float16)
    table.apply_gradients([1, 2], halves)
    expected = rows - np.float32(0.5) * halves.astype(np.float32)
    np.testing.assert_array_equal(table.lookup([1, 2]), expected)


def test_finite_gradients_that_sum_to_infinity_leave_the_row(table: Any) -> None:
    rows = table.lookup_or_insert([1, 2, 3])
    huge = np.full((2, 4), 3e38, np.float32)
    table.apply_gradients([1, 2, 1, 3], np.concatenate([huge, huge]) * ones(4, 1))
    after = table.lookup([1, 2, 3])
    np.testing.assert_array_equal(after[0], rows[0])
    np.testing.assert_array_equal(after[1], rows[1] - np.float32(0.5) * np.float32(3e38))
    np.testing.assert_array_equal(after[2], rows[2] - np.float32(0.5) * np.float32(3e38))


def test_assign_sets_and_the_last_repeat_wins(table: Any) -> None:
    table.lookup_or_insert([1])
    rows = np.arange(16, dtype=np.float32).reshape(4, 4)
    table.assign([1, 2, 1, 3], rows)
    np.testing.assert_array_equal(table.lookup([1, 2, 3]), rows[[2, 1, 3]])


def test_assign_keeps_slots(ps: Any, spec: hps.TableSpec) -> None:
    adagrad = ps.create_table(hps.TableSpec(spec.name, 2, hps.Adagrad(1.0), hps.Zeros()))
    adagrad.apply_gradients([1], ones(1, 2))
    adagrad.assign([1], np.zeros((1, 2), np.float32))
    adagrad.apply_gradients([1], ones(1, 2))
    # The accumulator went on from 1 to 2.
    expected = -np.float32(1) / (np.sqrt(np.float32(2)) + np.float32(1e-10))
    np.testing.assert_array_equal(adagrad.lookup(1), np.full(2, expected, np.float32))


def test_remove_counts_rows_and_forgets_them(table: Any, spec: hps.TableSpec) -> None:
    table.apply_gradients([1, 2, 3], ones(3, 4))
    assert table.remove([1, 1, 3, 99]) == 2
    assert len(table) == 1
    np.testing.assert_array_equal(table.lookup_or_insert(1), spec.initial_rows(1))


def test_counts_have_the_keys_shape(table: Any, spec: hps.TableSpec) -> None:
    rows = table.lookup_or_insert(KEYS, counts=np.full(KEYS.shape, 2**32 - 1, np.uint32))
    np.testing.assert_array_equal(rows, spec.initial_rows(KEYS))
    table.lookup_or_insert(KEYS, counts=[[1, 2, 3], [0, 1, 2]])


def test_signed_unsigned_and_text_keys_name_the_same_rows(table: Any) -> None:
    row = table.lookup_or_insert(np.int32(-1))
    np.testing.assert_array_equal(table.lookup(2**64 - 1), row)
    np.testing.assert_array_equal(table.lookup([-1, 2**64 - 1])[1], row)
    text = table.lookup_or_insert(["a", "b"])
    np.testing.assert_array_equal(table.lookup(np.array(["b", "a"])), text[::-1])
    # XXH64, seed 0, of "a".
    np.testing.assert_array_equal(table.lookup(0xD24EC4F1A98C6E5B), text[0])


def test_keys_lists_every_key_once(table: Any) -> None:
    keys = np.arange(3000, dtype=np.uint64) * 7
    table.lookup_or_insert(keys)
    pages = list(table.keys())
    assert all(page.dtype == np.uint64 for page in pages)
    np.testing.assert_array_equal(np.sort(np.concatenate(pages)), keys)
    assert len(table) == 3000


def test_many_tables_in_one_pass(ps: Any, spec: hps.TableSpec) -> None:
    other = hps.TableSpec(spec.name + "-b", 3, hps.SGD(1.0), hps.Constant(2.0))
    ps.create_table(spec)
    ps.create_table(other)
    a, b = spec.name, other.name
    rows = ps.lookup_or_insert({a: [1, 2, 1], b: "x"})
    np.testing.assert_array_equal(rows[a], spec.initial_rows([1, 2, 1]))
    np.testing.assert_array_equal(rows[b], np.full(3, 2, np.float32))
    gradients = {a: ([1, 1], ones(2, 4)), b: ("x", np.ones(3, np.float16))}
    ps.apply_gradients(gradients)
    both = ps.lookup({a: [1], b: ["x", "y"]}, return_found=True)
    np.testing.assert_array_equal(both[a][0], rows[a][:1] - np.float32(1))
    np.testing.assert_array_equal(both[b][0], [[1, 1, 1], [0, 0, 0]])
    assert both[b][1].tolist() == [True, False]
    ps.prefetch({a: [1, 77], b: "y"})
    assert ps.lookup({a: [77]}, return_found=True)[a][1].tolist() == [False]
    ps.lookup_or_insert({a: [1, 2]}, counts={a: [3, 4]})


def test_a_dict_verb_is_refused_whole(ps: Any, spec: hps.TableSpec) -> None:
    other = hps.TableSpec(spec.name + "-b", 4, hps.SGD(1.0), hps.Zeros())
    tables = [ps.create_table(spec), ps.create_table(other)]
    bad = np.full((1, 4), np.inf, np.float32)
    with pytest.raises(hps.BadInputError, match=other.name):
        ps.apply_gradients({spec.name: ([1], ones(1, 4)), other.name: ([1], bad)})
    assert [len(table) for table in tables] == [0, 0]


def test_large_batches_come_back_in_order(table: Any, spec: hps.TableSpec) -> None:
    keys = np.random.default_rng(1).zipf(1.2, 60_000).astype(np.int64)
    rows = table.lookup_or_insert(keys)
    np.testing.assert_array_equal(rows, spec.initial_rows(keys))
    gradients = np.full((keys.size, 4), 0.25, np.float32)
    table.apply_gradients(keys, gradients)
    _, inverse, times = np.unique(keys, return_inverse=True, return_counts=True)
    # Quarters sum exactly.
    step = np.float32(0.5) * (times[inverse] * 0.25).astype(np.float32)
    np.testing.assert_array_equal(table.lookup(keys), rows - step[:, None])


def test_stats_have_the_names_of_the_contract(ps: Any, table: Any) -> None:
    table.lookup_or_insert(np.arange(100))
    names = [
        "keys",
        "rows_dram",
        "rows_nvme",
        "rows_cold",
        "dram_bytes",
        "index_bytes",
        "nvme_bytes",
        "cold_bytes",
        "unique_keys",
        "probes",
        "cache_hits",
        "cache_misses",
        "device_reads",
        "background_reads",
        "device_bytes_read",
        "device_bytes_written",
        "journal_bytes",
        "bytes_updated",
        "evictions",
        "duplicate_pushes",
        "candidates",
        "candidates_bytes",
        "keys_admitted",
        "reads_unadmitted",
        "gradients_unadmitted",
        "rows_poisoned",
        "corrupt_records",
        "expired_rows",
    ]
    stats, total = table.stats(), ps.stats()
    for name in names:
        assert isinstance(stats[name], int), name
        assert isinstance(total[name], int), name
    assert stats["keys"] == 100
    assert total["tables"] >= 1
    assert total["dram_limit"] >= 8 << 20
    assert total["nvme_limit"] >= 64 << 20


def test_torch_tensors_are_taken(table: Any) -> None:
    torch = pytest.importorskip("torch")
    keys = torch.tensor([[1, 2], [3, 1]], dtype=torch.int32)
    rows = table.lookup_or_insert(keys)
    assert rows.shape == (2, 2, 4)
    table.apply_gradients(keys, torch.full((2, 2, 4), 0.5, dtype=torch.bfloat16))
    expected = rows - np.float32(0.25) * np.array([[2, 1], [1, 2]], np.float32)[..., None]
    np.testing.assert_array_equal(table.lookup(keys), expected)
    table.assign(keys[0], torch.zeros(2, 4, requires_grad=True))
    assert not table.lookup([1, 2]).any()
    with pytest.raises(hps.BadInputError, match="float32"):
        table.lookup(torch.tensor([1.0]))


def test_reads_larger_than_a_frame_are_one_result(ps: Any, spec: hps.TableSpec) -> None:
    wide = dataclasses.replace(spec, dim=512)
    ps.create_table(wide)
    ps.create_table(dataclasses.replace(spec, name=spec.name + "-b"))
    wide_table = ps.table(spec.name)
    wide_table.lookup_or_insert([3, 70_000])
    keys = np.arange(70_001)[::-1]
    both = ps.lookup({spec.name: keys, spec.name + "-b": keys}, return_found=True)
    rows, found = both[spec.name]
    assert np.flatnonzero(found).tolist() == [0, 69_997]
    np.testing.assert_array_equal(rows[found], wide.initial_rows([70_000, 3]))
    assert not rows[~found].any()
    assert not both[spec.name + "-b"][1].any()
