"""Goal: the scatter verbs do what NumPy's `ufunc.at` does, over every transport, whatever tier a
row lies in; what would poison a row changes nothing of it.

Method: random keys that repeat and jump, beside a dict of rows, bit for bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import Servers, fresh_name

import hybridps as hps

DIM = 4
AT = {
    "update": lambda values, at, rows: values.__setitem__(at, rows),
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "min": np.minimum.at,
    "max": np.maximum.at,
}
# Far from zero, so that many products and quotients stay within reach.
LOW, HIGH = 0.5, 2.0


def operands(seed: int, *shape: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1, 1], shape)
    return (signs * generator.uniform(LOW, HIGH, shape)).astype(np.float32)


@pytest.mark.parametrize("verb", AT)
def test_they_are_numpys_of_repeated_keys_in_order(
    table: Any, spec: hps.TableSpec, verb: str
) -> None:
    """Absent keys begin at their initial row. Sums of repeated keys made first would differ in
    their last bits.
    """
    universe = np.arange(-50, 50)
    values = spec.initial_rows(universe).copy()
    scatter = getattr(table, f"scatter_{verb}")
    seen: set[int] = set()
    for seed in range(3):
        keys = np.random.default_rng(seed).integers(-50, 50, (5, 37))
        rows = operands(seed, 5, 37, DIM)
        assert scatter(keys, rows) is None
        AT[verb](values, keys.ravel() + 50, rows.reshape(-1, DIM))
        seen.update(keys.ravel().tolist())
        got, found = table.lookup(universe, return_found=True)
        assert found.tolist() == [key in seen for key in universe.tolist()]
        np.testing.assert_array_equal(got[found], values[found])
    assert (table.statistics(universe).frequency == 0).all(), "nothing is counted"


def test_one_key_no_keys_and_text(table: Any, spec: hps.TableSpec) -> None:
    table.scatter_add("shoes", np.ones(DIM, np.float32))
    table.scatter_mul(hps.key_of("shoes"), np.full(DIM, 2, np.float16))
    expected = (spec.initial_rows("shoes") + np.float32(1)) * np.float32(2)
    np.testing.assert_array_equal(table.lookup("shoes"), expected)
    table.scatter_add([], np.zeros((0, DIM), np.float32))
    assert table.lookup([9]).any() == np.False_


def test_slots_stay(ps: Any, spec: hps.TableSpec) -> None:
    optimizer = hps.Adagrad(0.5, initial_accumulator=0.25)
    table = ps.create_table(hps.TableSpec(f"{spec.name}-slots", DIM, optimizer, hps.Zeros()))
    ones = np.ones((1, DIM), np.float32)
    table.apply_gradients([1], ones)
    table.scatter_update([1], 0 * ones)
    for verb in ("add", "sub", "mul", "div", "min", "max"):
        getattr(table, f"scatter_{verb}")([1], ones)
    np.testing.assert_array_equal(table.lookup([1]), ones)
    table.apply_gradients([1], ones)
    # The second step of this accumulator: 1/4 and two squares.
    expected = ones - np.float32(0.5) * (ones / (np.sqrt(np.float32(2.25)) + np.float32(1e-10)))
    np.testing.assert_array_equal(table.lookup([1]), expected)


def test_what_is_refused_changes_nothing(table: Any) -> None:
    table.assign([1], np.ones((1, DIM), np.float32))
    rows = np.ones((3, DIM), np.float32)
    holed = rows.copy()
    holed[2, 3] = 0
    for given, verb, reason in (
        (holed, "div", r"key 3 hold 0\.0 at column 3; no value can be divided"),
        (-holed, "div", r"key 3 hold -0\.0 at column 3"),
        (rows * np.inf, "max", "key 1 hold inf at column 0; only finite rows"),
        (holed * np.nan, "mul", "hold nan"),
        (rows[:2], "add", "have shape"),
        (rows.astype(np.float64), "sub", "float64"),
    ):
        with pytest.raises(hps.BadInputError, match=reason):
            getattr(table, f"scatter_{verb}")([1, 2, 3], given)
    rows, found = table.lookup([1, 2, 3], return_found=True)
    assert found.tolist() == [True, False, False]
    assert (rows[0] == 1).all()


def test_a_value_that_would_not_stay_finite_stays_and_is_counted(table: Any) -> None:
    huge = np.full((4, DIM), 3e38, np.float32)
    table.assign([1, 2, 3], huge[:3])
    before = table.stats()["rows_poisoned"]
    # Of key 1 the first operand is harmless; key 3 comes to zero.
    given = np.array([[1e30], [3e38], [3e38], [-3e38]], np.float32).repeat(DIM, axis=1)
    table.scatter_add([1, 2, 1, 3], given)
    rows = table.lookup([1, 2, 3])
    np.testing.assert_array_equal(rows[:2], huge[:2])
    assert not rows[2].any()
    assert table.stats()["rows_poisoned"] - before == 2
    table.scatter_div([1, 3], np.full((2, DIM), 1e-38, np.float32))
    np.testing.assert_array_equal(table.lookup([1, 3]), rows[[0, 2]])
    assert table.stats()["rows_poisoned"] - before == 3


def test_a_call_that_fits_no_message_is_applied_as_one(servers: Servers) -> None:
    """It goes in parts, which divide the repeats of a key."""
    keys = np.arange((1 << 20) + 5000) % 7
    rows = operands(1, len(keys), 1)
    with hps.connect(servers.url("tcp")) as ps:
        spec = hps.TableSpec(fresh_name(), 1, hps.SGD(0.5), hps.Zeros())
        table = ps.create_table(spec)
        table.scatter_add(keys, rows)
        values = np.zeros((7, 1), np.float32)
        np.add.at(values, keys, rows)
        np.testing.assert_array_equal(table.lookup(np.arange(7)), values)


def test_of_a_dropped_table_nothing_is_scattered(ps: Any, table: Any) -> None:
    table.scatter_add([1], np.ones((1, DIM), np.float32))
    ps.drop_table(table.name)
    with pytest.raises(hps.TableNotFoundError, match="dropped"):
        table.scatter_add([1], np.ones((1, DIM), np.float32))


@pytest.mark.parametrize("durability", ["none", "process"])
def test_tiers_and_restarts_change_no_bit(tmp_path: Path, durability: str) -> None:
    """Most rows lie on NVMe; rows are changed where they are, or by the replay of the journal."""
    dim, keys = 32, 40_000
    spec = hps.TableSpec("wide", dim, hps.Adam(0.1), hps.Normal(std=1), seed=5, dram="1MiB")
    settings: dict[str, Any] = {"dram": "8MiB", "nvme": "256MiB", "durability": durability}
    values = spec.initial_rows(np.arange(keys)).copy()
    generator = np.random.default_rng(7)
    for _ in range(3):
        with hps.connect(f"local:{tmp_path / 'store'}", **settings) as ps:
            table = ps.create_table(spec)
            for step, verb in enumerate(AT):
                some = generator.integers(0, keys, 9000)
                rows = operands(step, len(some), dim)
                getattr(table, f"scatter_{verb}")(some, rows)
                AT[verb](values, some, rows)
            got, found = table.lookup(np.arange(keys), return_found=True)
            np.testing.assert_array_equal(got[found], values[found])
            stats = table.stats()
            assert stats["evictions"] > 1000
            assert stats["device_reads"] > 1000
