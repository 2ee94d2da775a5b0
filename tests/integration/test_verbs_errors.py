"""Goal: bad input is refused whole, by an error that names the table, the value and the remedy.

Method: over every transport, each bad argument of each verb; then nothing has changed.
"""

from typing import Any

import numpy as np
import pytest

import hybridps as hps

FLOATS = np.ones((2, 4), np.float32)
BAD_KEYS = [
    (1.5, "float"),
    (np.array([1.0, 2.0]), "float64"),
    (np.array([], np.float32), "float32"),
    (True, "bool"),
    ([1, True], "bool"),
    (np.array([True, False]), "bool"),
    ([1, 2.0], "float"),
    ([1, "a"], "mix"),
    (b"raw", "bytes"),
    (np.array([b"raw"]), r"\|S3"),
    (None, "NoneType"),
    ({1, 2}, "set"),
    ([[1], [2, 3]], "ragged"),
    (2**64, "64 bits"),
    ([-(2**63) - 1], "64 bits"),
    ("\ud800", "UTF-8"),
    (np.array([1j]), "complex"),
    (np.array(["2020"], "datetime64[Y]"), "datetime64"),
]
BAD_ROWS = [
    (np.ones((2, 4)), "float64.*astype"),
    (np.ones((2, 4), np.int32), "int32.*astype"),
    (np.ones((2, 4), bool), "bool.*astype"),
    ([[1.0] * 4] * 2, "float64.*astype"),
    (np.ones((2, 3), np.float32), r"\(2, 3\)"),
    (np.ones((1, 4), np.float32), r"\(1, 4\)"),
    (np.ones(8, np.float32), r"\(8,\)"),
    (np.ones((2, 1), np.float32), r"\(2, 1\)"),
    (np.full((2, 4), np.nan, np.float32), "nan"),
    (np.array([[0] * 4, [0, 0, -np.inf, 0]], np.float16), "key 2 hold -inf at column 2"),
    (None, "object"),
]


@pytest.mark.parametrize(("keys", "named"), BAD_KEYS)
def test_bad_keys(ps: Any, table: Any, keys: Any, named: str) -> None:
    for call in (
        lambda: table.lookup(keys),
        lambda: table.lookup_or_insert(keys),
        lambda: table.apply_gradients(keys, FLOATS),
        lambda: table.assign(keys, FLOATS),
        lambda: table.remove(keys),
        lambda: ps.lookup({table.name: keys}),
        lambda: ps.prefetch({table.name: keys}),
    ):
        with pytest.raises(hps.BadInputError, match=named) as caught:
            call()
        assert table.name in str(caught.value)
        assert isinstance(caught.value, ValueError)
    assert len(table) == 0


@pytest.mark.parametrize(("rows", "named"), BAD_ROWS)
def test_bad_rows_and_gradients(ps: Any, table: Any, rows: Any, named: str) -> None:
    for call in (
        lambda: table.apply_gradients([1, 2], rows),
        lambda: table.assign([1, 2], rows),
        lambda: ps.apply_gradients({table.name: ([1, 2], rows)}),
    ):
        with pytest.raises(hps.BadInputError, match=named) as caught:
            call()
        assert table.name in str(caught.value)
    assert len(table) == 0


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ([1.0, 2.0], "float64.*uint32"),
        ([1], r"\(1,\)"),
        (3, r"\(\)"),
        ([1, -1], "-1"),
        ([1, 2**32], "4294967296"),
    ],
)
def test_bad_counts(table: Any, counts: Any, named: str) -> None:
    with pytest.raises(hps.BadInputError, match=named):
        table.lookup_or_insert([1, 2], counts=counts)
    assert len(table) == 0


@pytest.mark.parametrize("step", [1.0, "1", True, 2**63])
def test_bad_steps(table: Any, step: Any) -> None:
    with pytest.raises(hps.BadInputError, match="step"):
        table.apply_gradients([1, 2], FLOATS, step=step)
    assert len(table) == 0


def test_a_step_that_does_not_grow(table: Any) -> None:
    table.apply_gradients([1], FLOATS[:1], step=5)
    for step in (5, -1):
        told = f'table "{table.name}": step is {step}, .* pushed step 5 .* grow'
        with pytest.raises(hps.BadInputError, match=told):
            table.apply_gradients([2], FLOATS[:1], step=step)
    assert len(table) == 1


def test_bad_dicts(ps: Any, table: Any) -> None:
    for call in (
        lambda: ps.lookup([1]),
        lambda: ps.lookup_or_insert([1]),
        lambda: ps.prefetch([1]),
        lambda: ps.apply_gradients([1]),
        lambda: ps.apply_gradients({table.name: [1]}),
        lambda: ps.lookup({3: [1]}),
        lambda: ps.table(3),
        lambda: ps.create_table("item"),
        lambda: ps.lookup_or_insert({table.name: [1]}, counts=[1]),
        lambda: ps.lookup_or_insert({table.name: [1]}, counts={"other": [1]}),
    ):
        with pytest.raises(hps.BadInputError):
            call()


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), "fast", 1e39, None])
def test_bad_live_settings(table: Any, spec: hps.TableSpec, rate: Any) -> None:
    with pytest.raises(hps.BadInputError, match="learning_rate"):
        table.set_learning_rate(rate)
    with pytest.raises(hps.BadInputError, match="learning_rate"):
        table.alter(learning_rate=rate)
    for bad in ("1KiB", "many", -1, 1.5):
        with pytest.raises(hps.BadInputError, match="dram"):
            table.alter(dram=bad)
    with pytest.raises(hps.BadInputError, match="nvme"):
        table.alter(nvme="much")
    table.alter(expiry=None, admission=None)
    with pytest.raises(hps.BadInputError, match=rf"{table.name}.*expiry is 3"):
        table.alter(expiry=3)
    with pytest.raises(hps.BadInputError, match=rf"{table.name}.*admission is 3; give hps.Min"):
        table.alter(admission=3)
    assert table.spec == spec


@pytest.mark.parametrize("timeout", [0, -1, "soon", True])
def test_bad_timeouts(table: Any, timeout: Any) -> None:
    with pytest.raises(hps.BadInputError, match="timeout"):
        table.lookup(1, timeout=timeout)
