"""Goal: keys of every kind become the documented 64-bit patterns. Method: by example, and XXH64 of
independent origin."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hybridps as hps
from hybridps.keys import as_keys


@pytest.mark.parametrize(
    ("keys", "expected", "shape"),
    [
        (5, [5], ()),
        (-1, [2**64 - 1], ()),
        (2**64 - 1, [2**64 - 1], ()),
        ([1, -1], [1, 2**64 - 1], (2,)),
        ([2**63, -1], [2**63, 2**64 - 1], (2,)),
        (((1, 2), (3, 4)), [1, 2, 3, 4], (2, 2)),
        (range(3), [0, 1, 2], (3,)),
        (np.int8([-1, 1]), [2**64 - 1, 1], (2,)),
        (np.uint8([255]), [255], (1,)),
        (np.array([1, 256], ">i4"), [1, 256], (2,)),
        (np.arange(6).reshape(2, 3)[:, ::2], [0, 2, 3, 5], (2, 2)),
        (np.arange(4).reshape(2, 2).T, [0, 2, 1, 3], (2, 2)),
        ([np.int64(3), np.uint8(4)], [3, 4], (2,)),
        ([np.array([1, 2]), np.array([3, 4])], [1, 2, 3, 4], (2, 2)),
        (np.array([1, 2**64 - 1], object), [1, 2**64 - 1], (2,)),
        ([], [], (0,)),
        ([[], []], [], (2, 0)),
        (np.zeros((2, 0, 3), np.uint16), [], (2, 0, 3)),
    ],
)
def test_integers(keys: Any, expected: list[int], shape: tuple[int, ...]) -> None:
    flat, found_shape = as_keys(keys)
    assert flat.dtype == np.uint64
    assert flat.flags.c_contiguous
    assert flat.tolist() == expected
    assert found_shape == shape


# XXH64 with seed 0, from the reference implementation's test vectors and known digests.
DIGESTS = {"": 0xEF46DB3751D8E999, "a": 0xD24EC4F1A98C6E5B, "abc": 0x44BC2CF5AD770999}


def test_texts() -> None:
    for text, digest in DIGESTS.items():
        assert as_keys(text)[0].tolist() == [digest]
        assert as_keys(text)[1] == ()
    texts = list(DIGESTS)
    for keys in (texts, tuple(texts), np.array(texts), np.array(texts, object)):
        flat, shape = as_keys(keys)
        assert flat.tolist() == list(DIGESTS.values())
        assert shape == (3,)


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=20))
def test_any_list_of_integers(keys: list[int]) -> None:
    assert as_keys(keys)[0].tolist() == [key % 2**64 for key in keys]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_lists_and_single_texts_agree(texts: list[str]) -> None:
    assert as_keys(texts)[0].tolist() == [int(as_keys(text)[0][0]) for text in texts]


@pytest.mark.parametrize("keys", [1.0, [True], np.float32([1]), [None], [1, "a"], object()])
def test_what_is_no_key(keys: Any) -> None:
    with pytest.raises(hps.BadInputError, match="table 'item': keys are"):
        as_keys(keys, "item")


def test_the_keys_that_texts_stand_for() -> None:
    assert hps.key_of("shoes") == int(as_keys("shoes")[0][0])
    texts = [["shoes", "hats"], ["", "x"]]
    keys = hps.keys_of(texts)
    assert (keys.dtype, keys.shape) == (np.uint64, (2, 2))
    assert keys.tolist() == [[hps.key_of(text) for text in row] for row in texts]
    np.testing.assert_array_equal(hps.keys_of(np.array(texts)), keys)
    assert hps.keys_of([]).shape == (0,)
    for wrong in ([1], ["a", 1], ["\ud800"], [b"x"], None):
        with pytest.raises(hps.BadInputError):
            hps.keys_of(wrong)  # type: ignore[arg-type]
    for wrong in (["a"], 1, None):
        with pytest.raises(hps.BadInputError):
            hps.key_of(wrong)  # type: ignore[arg-type]
