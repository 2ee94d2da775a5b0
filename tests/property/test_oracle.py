"""Goal: any sequence of verbs leaves what a dict and NumPy say.

Method: Hypothesis drives a table and an oracle; rows are compared bit for bit after every step.
Keys are few, so that they meet each other; batches hold repeats and may be empty.
"""

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import hybridps as hps

DIM = 3
KEYS = st.lists(st.integers(-6, 6), max_size=8)
NUMBERS = st.integers(-8, 8)
SCATTERS: dict[str, Any] = {
    "update": lambda _, operand: operand,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
}
_paths = itertools.count()


class Oracle:
    """One table: key -> [value, accumulators], in float32 step by step."""

    def __init__(self, spec: hps.TableSpec, *, is_adagrad: bool) -> None:
        self.spec = spec
        self.is_adagrad = is_adagrad
        self.rate = np.float32(spec.optimizer.learning_rate)
        self.rows: dict[int, list[np.ndarray]] = {}

    def row(self, key: int) -> list[np.ndarray]:
        if key not in self.rows:
            initial = np.zeros(DIM, np.float32)
            if self.is_adagrad:
                initial += np.float32(0.5)
            self.rows[key] = [self.spec.initial_rows(key), initial]
        return self.rows[key]

    def apply(self, keys: list[int], gradients: np.ndarray) -> None:
        sums: dict[int, np.ndarray] = {}
        for key, gradient in zip(keys, gradients, strict=True):
            sums[key] = sums[key] + gradient if key in sums else gradient
        for key, gradient in sums.items():
            row = self.row(key)
            if self.is_adagrad:
                row[1] = row[1] + gradient * gradient
                row[0] = row[0] - self.rate * (gradient / (np.sqrt(row[1]) + np.float32(1e-10)))
            else:
                row[0] = row[0] - self.rate * gradient


class TableMachine(RuleBasedStateMachine):
    """Verbs in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.ps = self.open()
        self.tables: list[Any] = []
        self.oracles: list[Oracle] = []

    def open(self) -> hps.ParameterServer:
        path = Path(self.directory, str(next(_paths)))
        return hps.connect(f"local:{path}", dram="8MiB", nvme="64MiB", threads=1)

    @initialize(seed=st.integers(0, 2**64 - 1))
    def create(self, seed: int) -> None:
        for name, optimizer in (("sgd", hps.SGD(0.5)), ("adagrad", hps.Adagrad(0.1, 0.5))):
            spec = hps.TableSpec(name, DIM, optimizer, hps.Normal(std=1), seed=seed)
            self.tables.append(self.ps.create_table(spec))
            self.oracles.append(Oracle(spec, is_adagrad=name == "adagrad"))

    @rule(which=st.integers(0, 1), keys=KEYS)
    def lookup_or_insert(self, which: int, keys: list[int]) -> None:
        expected = [self.oracles[which].row(key)[0] for key in keys]
        rows = self.tables[which].lookup_or_insert(keys)
        np.testing.assert_array_equal(rows, np.reshape(expected, (len(keys), DIM)))

    @rule(which=st.integers(0, 1), keys=KEYS, number=NUMBERS)
    def apply_gradients(self, which: int, keys: list[int], number: int) -> None:
        gradients = (number + np.arange(len(keys) * DIM, dtype=np.float32)).reshape(-1, DIM) / 3
        self.tables[which].apply_gradients(keys, gradients)
        self.oracles[which].apply(keys, gradients)

    @rule(first=KEYS, second=KEYS)
    def apply_gradients_to_both(self, first: list[int], second: list[int]) -> None:
        batches = {}
        for name, oracle, keys in zip(
            ("sgd", "adagrad"), self.oracles, (first, second), strict=True
        ):
            gradients = np.full((len(keys), DIM), 0.1, np.float32)
            batches[name] = (keys, gradients)
            oracle.apply(keys, gradients)
        self.ps.apply_gradients(batches)

    @rule(which=st.integers(0, 1), keys=KEYS, number=NUMBERS)
    def assign(self, which: int, keys: list[int], number: int) -> None:
        rows = (number * np.arange(len(keys) * DIM, dtype=np.float32)).reshape(-1, DIM)
        self.tables[which].assign(keys, rows)
        for key, row in zip(keys, rows, strict=True):
            self.oracles[which].row(key)[0] = row

    @rule(which=st.integers(0, 1), keys=KEYS, number=NUMBERS, verb=st.sampled_from([*SCATTERS]))
    def scatter(self, which: int, keys: list[int], number: int, verb: str) -> None:
        operands = 1 + (number * np.arange(len(keys) * DIM, dtype=np.float32)).reshape(-1, DIM) / 16
        operands[operands == 0] = 0.5
        getattr(self.tables[which], f"scatter_{verb}")(keys, operands)
        for key, operand in zip(keys, operands, strict=True):
            row = self.oracles[which].row(key)
            row[0] = SCATTERS[verb](row[0], operand)

    @rule(which=st.integers(0, 1), keys=KEYS)
    def remove(self, which: int, keys: list[int]) -> None:
        removed = self.tables[which].remove(keys)
        gone = [self.oracles[which].rows.pop(key, None) for key in set(keys)]
        assert removed == sum(row is not None for row in gone)

    @rule(which=st.integers(0, 1), rate=st.sampled_from([0.0, 0.25, 1.0]))
    def set_learning_rate(self, which: int, rate: float) -> None:
        self.tables[which].set_learning_rate(rate)
        self.oracles[which].rate = np.float32(rate)

    @rule(keys=KEYS)
    def refuse(self, keys: list[int]) -> None:
        bad = np.full((len(keys) + 1, DIM), np.nan, np.float32)
        try:
            self.tables[0].apply_gradients([*keys, 0], bad)
        except hps.BadInputError:
            return
        raise AssertionError("a push of NaN was taken")

    @precondition(lambda self: self.tables)
    @invariant()
    def rows_agree(self) -> None:
        keys = list(range(-7, 8))
        for table, oracle in zip(self.tables, self.oracles, strict=True):
            rows, found = table.lookup(keys, return_found=True)
            assert found.tolist() == [key in oracle.rows for key in keys]
            zeros = np.zeros(DIM, np.float32)
            expected = [oracle.rows[key][0] if key in oracle.rows else zeros for key in keys]
            np.testing.assert_array_equal(rows, expected)
            assert len(table) == len(oracle.rows)
            pages = table.keys()  # a verb, not a dict's
            listed = [int(key) for page in pages for key in page.view(np.int64)]
            assert sorted(listed) == sorted(oracle.rows)

    def teardown(self) -> None:
        self.ps.close()
        shutil.rmtree(self.directory, ignore_errors=True)


is_long = "HYBRIDPS_LONG" in os.environ
TableMachine.TestCase.settings = settings(
    max_examples=500 if is_long else 30,
    stateful_step_count=80 if is_long else 25,
    deadline=None,
)
TestTable = TableMachine.TestCase
