"""Goal: a pooled lookup gives what NumPy makes of the rows, over every transport.

Method: the rows are looked up one by one and pooled here, in order of the bag; over two shards the
last bits may differ. What is wrong with bags is refused before anything is asked.
"""

from typing import Any

import numpy as np
import pytest

import hybridps as hps

DIM = 4
KEYS = np.array([3, 9, 3, 2**40, 777, 5, 9, 1], np.int64)
OFFSETS = np.array([0, 0, 3, 7], np.int64)
WEIGHTS = np.array([0.5, -1.0, 2.0, 0.25, 3.0, 1.0, -2.0, 1.5], np.float32)


@pytest.fixture
def filled(table: Any) -> Any:
    """The table with rows for all keys but 777."""
    keys = np.unique(KEYS[KEYS != 777])
    rows = np.sin(np.arange(len(keys) * DIM, dtype=np.float32) * 3).reshape(-1, DIM)
    table.assign(keys, rows)
    return table


def pooled(rows: np.ndarray, sizes: list[int], pool: str, weights: np.ndarray | None) -> np.ndarray:
    """Bag by bag, key by key, in float32."""
    factors = np.ones(len(rows), np.float32) if weights is None else weights
    result, start = [], 0
    for size in sizes:
        total = np.zeros(rows.shape[1], np.float32)
        for n in range(start, start + size):
            total += factors[n] * rows[n]
        own = factors[start : start + size].astype(np.float64)
        divisor = {"sum": 1.0, "mean": own.sum(), "sqrtn": np.sqrt((own**2).sum())}[pool]
        result.append(total / np.float32(divisor) if divisor else np.zeros_like(total))
        start += size
    return np.array(result, np.float32).reshape(len(sizes), rows.shape[1])


def check(kind: str, got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.flags.writeable
    if "shards" in kind:
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("pool", ["sum", "mean", "sqrtn"])
def test_bags_are_pooled(kind: str, filled: Any, pool: str, weights: Any) -> None:
    rows = filled.lookup(KEYS)
    got = filled.lookup(KEYS, pool=pool, offsets=OFFSETS, weights=weights)
    check(kind, got, pooled(rows, [0, 3, 4, 1], pool, weights))
    lines = None if weights is None else weights.reshape(2, 4)
    got = filled.lookup(KEYS.reshape(2, 4), pool=pool, weights=lines)
    check(kind, got, pooled(rows, [4, 4], pool, weights))
    assert len(filled) == 5, "nothing was made"


def test_shapes_and_empty_batches(filled: Any) -> None:
    assert filled.lookup(KEYS.reshape(2, 2, 2), pool="sum").shape == (2, 2, DIM)
    assert filled.lookup(np.zeros((3, 0), np.int64), pool="mean").tolist() == [[0.0] * DIM] * 3
    assert filled.lookup([], pool="sum", offsets=[]).shape == (0, DIM)
    assert not filled.lookup([], pool="sqrtn", offsets=[0, 0]).any()
    assert not filled.lookup([3, 9], pool="mean", offsets=[0], weights=np.float32([1, -1])).any()


def test_a_million_ids_in_one_call(filled: Any) -> None:
    # Numbers whose sums are exact in any order.
    keys = np.unique(KEYS)
    filled.assign(keys, (np.arange(len(keys) * DIM, dtype=np.float32) % 7 - 3).reshape(-1, DIM))
    ids = np.random.default_rng(5).choice(KEYS, 1_200_000)
    # Small bags, and one that no message holds.
    sizes = [7, 0, 1_100_000, *[4] * 20_000]
    offsets = np.cumsum([0, *sizes[:-1]])
    ids = ids[: sum(sizes)]
    got = filled.lookup(ids, pool="sum", offsets=offsets)
    rows = filled.lookup(ids)
    starts = np.minimum(offsets, len(rows) - 1)
    sums = np.add.reduceat(rows, starts, axis=0)
    sums[np.array(sizes) == 0] = 0
    np.testing.assert_array_equal(got, sums)


def test_several_tables_in_one_pass(kind: str, ps: Any, filled: Any) -> None:
    other = ps.create_table(hps.TableSpec(filled.name + "b", 3, hps.SGD(1.0), hps.Constant(2.0)))
    other.lookup_or_insert([1, 2])
    out = np.empty((2, 3), np.float32)
    got = ps.lookup(
        {filled.name: (KEYS, OFFSETS, WEIGHTS), other.name: np.array([[1, 2], [2, 8]])},
        pool="mean",
        out={other.name: out},
    )
    check(kind, got[filled.name], pooled(filled.lookup(KEYS), [0, 3, 4, 1], "mean", WEIGHTS))
    assert got[other.name] is out
    np.testing.assert_array_equal(out, [[2.0] * 3, [1.0] * 3])


def test_results_go_where_they_are_wanted(filled: Any) -> None:
    out = np.full((8, DIM), np.nan, np.float32)
    assert filled.lookup(KEYS, out=out) is out
    np.testing.assert_array_equal(out, filled.lookup(KEYS))
    rows, found = filled.lookup(KEYS, out=out, return_found=True)
    assert rows is out
    assert found.sum() == 7
    strided = np.zeros((2, 2 * DIM), np.float32)[:, ::2]
    filled.lookup(KEYS.reshape(2, 4), pool="sum", out=strided)
    np.testing.assert_array_equal(strided, filled.lookup(KEYS.reshape(2, 4), pool="sum"))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"pool": "max", "offsets": [0]}, "pool is 'max'"),
        ({"offsets": [0]}, 'give pool="sum" too'),
        ({"weights": WEIGHTS}, 'give pool="sum" too'),
        ({"pool": "sum"}, "there are no offsets"),
        ({"pool": "sum", "offsets": [[0]]}, "both of one dimension"),
        ({"pool": "sum", "offsets": [1, 2]}, "offsets begin with 1"),
        ({"pool": "sum", "offsets": [0, 4, 3]}, "offset 3 at 2 follows 4"),
        ({"pool": "sum", "offsets": [0, 9]}, "the last offset is 9, there are 8 keys"),
        ({"pool": "sum", "offsets": [0.0, 2.0]}, r"astype\(numpy.int64\)"),
        ({"pool": "sum", "offsets": []}, "8 keys and no offsets"),
        ({"pool": "sum", "offsets": [0], "weights": WEIGHTS[:3]}, "one weight a key"),
        ({"pool": "sum", "offsets": [0], "weights": WEIGHTS * np.inf}, "give finite ones"),
        ({"pool": "sum", "offsets": [0], "weights": np.ones(8)}, "weights are float64"),
        ({"pool": "sum", "offsets": [0], "return_found": True}, "return_found="),
        ({"pool": "sum", "offsets": [0], "out": np.ones((2, DIM), np.float32)}, "out has shape"),
        ({"pool": "sum", "offsets": [0], "out": np.ones((1, DIM))}, "out is float64"),
        ({"out": [1.0]}, "out is list"),
    ],
)
def test_what_is_no_bag_is_refused(filled: Any, wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(hps.BadInputError, match=text):
        filled.lookup(KEYS, **wrong)


def test_what_is_no_bag_of_a_table_is_refused(ps: Any, filled: Any) -> None:
    name = filled.name
    with pytest.raises(hps.BadInputError, match=r"\(keys, offsets\) or"):
        ps.lookup({name: (KEYS,)}, pool="sum")
    with pytest.raises(hps.BadInputError, match="return_found="):
        ps.lookup({name: KEYS}, pool="sum", return_found=True)
    with pytest.raises(hps.BadInputError, match="out names table 'lost'"):
        ps.lookup({name: KEYS}, out={"lost": np.ones((8, DIM), np.float32)})
    with pytest.raises(hps.TableNotFoundError):
        ps.lookup({"lost": (KEYS, [0])}, pool="sum")


def test_torch_pools_alike(filled: Any) -> None:
    torch = pytest.importorskip("torch")
    unique, ids = np.unique(KEYS, return_inverse=True)
    weight = torch.from_numpy(filled.lookup(unique))
    keys, offsets = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(OFFSETS)
    for pool, weights in (("sum", None), ("mean", None), ("sum", torch.from_numpy(WEIGHTS))):
        bags = torch.nn.functional.embedding_bag(
            keys, weight, offsets, mode=pool, per_sample_weights=weights
        )
        given = torch.from_numpy(KEYS)
        got = filled.lookup(given, pool=pool, offsets=offsets, weights=weights)
        np.testing.assert_allclose(got, bags.numpy(), rtol=1e-5, atol=1e-6)
