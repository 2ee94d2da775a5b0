"""Goal: however bags are cut for messages and servers, their keys, weights and sums stay theirs.

Method: random bags beside a loop over them; messages of a few keys, so that bags and tables are cut
everywhere. A server's answer is computed here from its pieces alone.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridps as hps
from hybridps import placement
from hybridps.verbs.bags import Bags, Piece, added, as_bags, pieces_of
from hybridps.verbs.batches import TableRef
from hybridps.verbs.router import ReadLimits

DIM = 3


def row(key: int) -> np.ndarray:
    """Whole numbers: their sums are the same in any order."""
    return np.float32([key % 17, key % 5 - 2, 1])


def answer(piece: Piece) -> np.ndarray:
    """What a server answers."""
    sums, start = np.zeros((len(piece.bags), DIM), np.float32), 0
    for bag, size in enumerate(piece.sizes):
        for n in range(start, start + int(size)):
            factor = 1 if piece.weights is None else piece.weights[n]
            sums[bag] += factor * row(int(piece.keys[n]))
        start += int(size)
    assert start == len(piece.keys)
    return sums


def bags(name: str, sizes: list[int], is_weighted: bool) -> Bags:
    keys = np.arange(sum(sizes)) * 7919 % 1009
    weights = (keys % 4 - 1).astype(np.float32) if is_weighted else None
    offsets = np.cumsum([0, *sizes])[:-1]
    return as_bags(TableRef(name, (1,), DIM), keys, offsets, weights)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(3, 40),
    st.booleans(),
)
def test_pieces_hold_every_key_once_and_add_up(
    sizes: list[list[int]], shards: int, keys_limit: int, is_weighted: bool
) -> None:
    tables = [bags(f"t{n}", of, is_weighted) for n, of in enumerate(sizes)]
    calls = pieces_of(tables, shards, ReadLimits(keys_limit, 4096))
    answers = []
    for shard, messages in calls.items():
        for pieces in messages:
            assert sum(len(piece.keys) for piece in pieces) <= keys_limit
            for piece in pieces:
                assert (placement.shards(piece.keys, shards) == shard).all()
                assert len(set(piece.bags.tolist())) == len(piece.bags)
            answers.append((pieces, [answer(piece) for piece in pieces]))
    for of, sums in zip(tables, added(tables, answers), strict=True):
        whole = Piece(0, np.arange(len(of.sizes)), of.batch.keys, of.sizes, of.weights)
        np.testing.assert_array_equal(sums, answer(whole))


def test_a_message_holds_what_its_limits_say() -> None:
    of = bags("t", [1] * 1000, False)
    (messages,) = pieces_of([of], 1, ReadLimits(1 << 20, 4096)).values()
    room_bytes = 4096 - 4096 // 16
    for pieces in messages:
        keys, count = (sum(len(getattr(p, of)) for p in pieces) for of in ("keys", "bags"))
        assert 12 * keys + 4 * count <= room_bytes
        assert 4 * DIM * count <= room_bytes
    assert len(messages) < 12, "and not much less"
    assert len(pieces_of([of], 1)[0]) == 1


@pytest.mark.parametrize(
    ("pool", "divisors"),
    [("sum", [1, 1, 1]), ("mean", [3, 1, 2]), ("sqrtn", [3**0.5, 1, 2**0.5])],
)
def test_divisors_without_weights(pool: str, divisors: list[float]) -> None:
    of = as_bags(TableRef("t", (1,), 2), [1, 2, 3, 4, 5], [0, 3, 3], None)
    sums = np.float32([[6, 12], [0, 0], [8, 16]])
    expected = sums / np.float32(divisors)[:, None]
    np.testing.assert_array_equal(of.divided(sums.copy(), pool), expected)


def test_divisors_with_weights_and_a_sum_of_zero() -> None:
    weights = np.float32([1, 2, -2, 5])
    of = as_bags(TableRef("t", (1,), 1), [1, 2, 3, 4], [0, 1, 3], weights)
    sums = np.float32([[3], [7], [10]])
    assert of.divided(sums.copy(), "mean").tolist() == [[3], [0], [2]]
    root = float(np.float32(7) / np.float32(8**0.5))
    assert of.divided(sums.copy(), "sqrtn").tolist() == [[3], [root], [2]]


def test_a_server_that_answers_other_rows_is_told() -> None:
    of = bags("t", [1, 2], False)
    (messages,) = pieces_of([of], 1).values()
    wrong: Any = [(messages[0], [np.zeros((2, DIM + 1), np.float32)])]
    with pytest.raises(hps.HybridPSError, match="are not of 3"):
        added([of], wrong)
