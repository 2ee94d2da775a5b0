"""Tables of a served store beside NumPy: every row can be computed from its key, so that none can
stand in for another."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridps import _core
from support.wired import Served

Keys = NDArray[np.uint64]
Rows = NDArray[np.float32]
INSERTED_AT_ONCE = 50_000


class Numbered:
    """A table of which the even keys below `2 * rows` exist; every third key was trained once."""

    def __init__(self, served: Served, dim: int, rows: int, nvme: int | None = None) -> None:
        self.dim, self.rows = dim, rows
        self.text = json.dumps(
            {
                "name": f"numbered-{dim}",
                "dim": dim,
                "optimizer": {"kind": "sgd"},
                "learning_rate": 1.0,
                "initializer": {"kind": "normal", "mean": 0.0, "std": 0.1},
                "seed": dim,
                "dtype": "float32",
                "dram": None,
                "nvme": nvme,
            }
        )
        self.id = served.store.create_table(self.text)[0]
        keys = np.arange(0, 2 * rows, 2, dtype=np.uint64)
        served.store.attach(1000 + dim, "")
        for number, part in enumerate(
            np.split(keys, range(INSERTED_AT_ONCE, rows, INSERTED_AT_ONCE))
        ):
            served.store.lookup_or_insert([(self.id, part, None)])
            trained = part[part % 3 == 0]
            batch = (self.id, trained, self._gradients(trained))
            served.store.apply_gradients(1000 + dim, number + 1, None, [batch])

    def sample(self, count: int, seed: int) -> Keys:
        """Keys in any order, some of them twice; about half of them are absent."""
        random = np.random.default_rng(seed)
        return random.integers(0, 2 * self.rows, count, dtype=np.uint64)

    def initial(self, keys: Keys) -> Rows:
        """Rows of keys that were just created."""
        return np.asarray(_core.initial_rows(self.text, keys)).reshape(len(keys), self.dim)

    def expected(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows and found flags of a lookup."""
        found = (keys % 2 == 0) & (keys < 2 * self.rows)
        trained = self.initial(keys) - self._gradients(keys)
        rows = np.where((keys % 3 == 0)[:, None], trained, self.initial(keys))
        return np.where(found[:, None], rows, np.float32(0)), found

    def check(self, keys: Keys, rows: Any, found: Any) -> None:
        """The answer of a lookup, bit for bit; `found` is None where it was not asked for."""
        expected, expected_found = self.expected(keys)
        self.check_rows(expected, rows)
        if found is not None:
            np.testing.assert_array_equal(np.frombuffer(found, np.uint8), expected_found)

    def check_rows(self, expected: Rows, rows: Any) -> None:
        """Rows as they came."""
        got = np.frombuffer(rows, np.float32)
        assert got.size == expected.size
        # As integers: zeros of both signs differ.
        same = got.view(np.uint32) == expected.reshape(-1).view(np.uint32)
        if not same.all():
            bad = np.unique(np.flatnonzero(~same) // self.dim)
            raise AssertionError(f"dim {self.dim}: {len(bad)} rows are wrong, at {bad[:10]} ...")

    def _gradients(self, keys: Keys) -> Rows:
        return (keys[:, None] % 251 + np.arange(1, self.dim + 1, dtype=np.uint64)).astype(
            np.float32
        )
