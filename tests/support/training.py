"""A training program whose every gradient depends on the rows it read: one lost, doubled or
reordered push, or one wrong bit, shows in all that follows.

Several programs may train the same tables at a time: each has ids of its own, so that what it
leaves depends on its own steps alone, and can be made again step by step elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hybridps as hps

Rows = NDArray[np.float32]
SPECS = (
    hps.TableSpec("item", 64, hps.Adagrad(0.05), hps.Normal(std=0.1), seed=1),
    hps.TableSpec("user", 32, hps.Adam(0.01), hps.Uniform(-0.1, 0.1), seed=2),
    hps.TableSpec("shop", 8, hps.RowWiseAdagrad(0.05, 0.1), hps.TruncatedNormal(std=0.1), seed=3),
    hps.TableSpec("word", 16, hps.SGD(0.1), seed=4),
)
ASSIGN_EVERY, REMOVE_EVERY = 5, 7


class Program:
    """One trainer of all tables; `number` of `count` says which ids are its own."""

    def __init__(
        self, ps: Any, number: int = 0, count: int = 1, *, ids: int = 8000, batch: int = 400
    ) -> None:
        self.ps = ps
        self.settings = {"number": number, "count": count, "ids": ids, "batch": batch}
        self._random = np.random.default_rng(number)
        self._number, self._count, self._ids, self._batch = number, count, ids, batch
        self.steps = 0
        self.tables = {spec.name: ps.create_table(spec) for spec in SPECS}

    def all_keys(self) -> NDArray[np.int64]:
        """Every id of this program."""
        return np.arange(self._ids) * self._count + self._number

    def step(self) -> None:
        """Reads all tables and pushes to them in one call; now and then sets and removes rows."""
        ids = {name: self._some(self._batch) for name in self.tables}
        rows = self.ps.lookup_or_insert(ids)
        self.ps.apply_gradients({name: (ids[name], self._gradients(rows[name])) for name in ids})
        names = list(self.tables)
        if self.steps % ASSIGN_EVERY == 0:
            table, keys = self.tables[names[self.steps % len(names)]], self._some(20)
            table.assign(keys, table.lookup(keys) / 2)
        if self.steps % REMOVE_EVERY == 0:
            self.tables[names[self.steps % len(names)]].remove(self._some(20))
        self.steps += 1

    def rows(self) -> dict[str, Rows]:
        """Every row, then every row after one more push: slots show in the second."""
        keys = self.all_keys()
        found: dict[str, Rows] = {}
        for name, table in self.tables.items():
            found[name] = table.lookup(keys)
            table.apply_gradients(keys, np.ones_like(found[name]))
            found[f"{name}, slots"] = table.lookup(keys)
        return found

    def _some(self, count: int) -> NDArray[np.int64]:
        """Ids of this program, which may repeat; small ones more often."""
        ids = (self._ids * self._random.random(count) ** 2).astype(np.int64)
        return ids * self._count + self._number

    def _gradients(self, rows: Rows) -> Rows:
        noise = self._random.standard_normal(rows.shape, np.float32)
        return np.tanh(rows) + np.float32(0.1) * noise


@contextmanager
def undisturbed(like: Program, directory: Path) -> Iterator[Program]:
    """The same steps in a store of this process that has room for all rows in DRAM."""
    with hps.connect(f"local:{directory}", dram="256MiB", nvme="1GiB") as ps:
        program = Program(ps, **like.settings)
        for _ in range(like.steps):
            program.step()
        yield program


def assert_same(found: dict[str, Rows], expected: dict[str, Rows]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        wrong = np.nonzero((rows.view(np.uint32) != expected[name].view(np.uint32)).any(axis=1))[0]
        assert not len(wrong), f"{name}: {len(wrong)} rows differ, the first at {wrong[0]}"
