"""The engine and the connection, compiled from `rust/`. Typed face and long docs live here.

Arrays are NumPy, C-contiguous, one-dimensional keys; every call releases the interpreter lock.
Errors are raised as the classes of `hybridps.errors`. Keys are the 64-bit patterns; they may repeat
in every verb (repeats are merged here, before the engine sees them).
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
Rows: TypeAlias = NDArray[np.float32]

__version__: str

def initial_rows(spec: str, keys: Keys) -> Rows:
    """float32[n, dim]: the rows these keys would start with."""

def check_spec(spec: str) -> None:
    """Raises BadInputError for a spec that no table can have."""

def unique(ids: Keys, shards: int) -> tuple[Keys, list[int], NDArray[np.uint32]]:
    """Unique keys grouped by shard, the shards + 1 offsets, and the index of each id's key."""

def gather(rows: Rows, inverse: NDArray[np.uint32], out: Rows) -> None:
    """out[i] = rows[inverse[i]]."""

def sum_rows(rows: Rows, inverse: NDArray[np.uint32], unique: int) -> Rows:
    """float32[unique, dim]: rows summed per key in order of occurrence."""

def sum_counts(
    counts: NDArray[np.uint32], inverse: NDArray[np.uint32], unique: int
) -> NDArray[np.uint32]:
    """uint32[unique], saturating."""

def is_finite(rows: Rows) -> bool:
    """True if every number is finite; one pass, no temporary."""

class Store:
    """A store opened in this process. `spec` strings are the JSON of `TableSpec.to_json`."""

    def __init__(
        self,
        path: str,
        *,
        dram: int,
        nvme: int,
        durability: str,
        threads: int,
        shard: int = 0,
        shards: int = 1,
    ) -> None: ...
    def attach(self, session: int, client_id: str) -> int: ...
    def create_table(self, spec: str) -> tuple[int, str, list[str]]:
        """(id, stored spec, live settings that differ)."""
    def table(self, name: str) -> tuple[int, str]: ...
    def tables(self) -> list[str]: ...
    def drop_table(self, name: str) -> None: ...
    def spec(self, table: int) -> str: ...
    def alter(self, table: int, change: str) -> None:
        """JSON object with any of learning_rate, dram, nvme; null lifts a cap."""
    def lookup(
        self, batches: Sequence[tuple[int, Keys]], want_found: bool
    ) -> list[tuple[Rows, NDArray[np.bool_] | None]]: ...
    def lookup_or_insert(
        self, batches: Sequence[tuple[int, Keys, NDArray[np.uint32] | None]]
    ) -> list[Rows]: ...
    def apply_gradients(
        self,
        session: int,
        number: int,
        step: int | None,
        batches: Sequence[tuple[int, Keys, Rows]],
    ) -> bool:
        """True if the push had been applied before."""
    def assign(self, session: int, number: int, table: int, keys: Keys, rows: Rows) -> None: ...
    def remove(self, session: int, number: int, table: int, keys: Keys) -> int: ...
    def prefetch(self, batches: Sequence[tuple[int, Keys]]) -> None: ...
    def size(self, table: int) -> int: ...
    def keys(self, table: int, bucket: int) -> tuple[Keys, int]: ...
    def table_stats(self, table: int) -> dict[str, int]: ...
    def stats(self) -> dict[str, int]: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
