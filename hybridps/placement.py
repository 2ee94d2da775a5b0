"""Pure placement: key -> hash -> bucket -> shard, as the engine does it (`rust/core/src/types.rs`).

Clients and tools ask where a key lives; nothing here allocates rows or talks to anyone.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BUCKETS: Final = 4096
# Parts of the key space in order of the hash: what a page of changes covers is told in them.
CELLS_A_BUCKET: Final = 1 << 24
CELLS: Final = BUCKETS * CELLS_A_BUCKET
_CELL_SHIFT: Final = np.uint64(64 - 36)
_IN_BUCKET: Final = np.uint64(CELLS_A_BUCKET - 1)
_BUCKET_SHIFT: Final = np.uint64(64 - 12)
_SHIFT: Final = np.uint64(33)
_FIRST: Final = np.uint64(0xFF51_AFD7_ED55_8CCD)
_SECOND: Final = np.uint64(0xC4CE_B9FE_1A85_EC53)


def hash_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64[n]: the 64-bit finalizer of MurmurHash3, the one hash of every placement."""
    h = keys.astype(np.uint64, copy=True)
    h ^= h >> _SHIFT
    h *= _FIRST
    h ^= h >> _SHIFT
    h *= _SECOND
    h ^= h >> _SHIFT
    return h


def buckets(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """uint32[n]: the bucket of each key, 0 to 4095."""
    return (hash_keys(keys) >> _BUCKET_SHIFT).astype(np.uint32)


def cells(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64[n]: the cell of each key, 0 to 2^36 - 1: its bucket, and what the index knows of the
    hash below it, where 0 counts as 1.
    """
    cells = hash_keys(keys) >> _CELL_SHIFT
    cells[(cells & _IN_BUCKET) == 0] += np.uint64(1)
    return cells


def cells_of(shard: int, count: int) -> tuple[int, int]:
    """The cells [first, end) of a shard when `count` servers share the buckets in equal ranges."""
    first, end = (-(-part * BUCKETS // count) for part in (shard, shard + 1))
    return first * CELLS_A_BUCKET, end * CELLS_A_BUCKET


def shards(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint32]:
    """uint32[n]: the shard of each key when `count` servers share the buckets in equal ranges."""
    return (buckets(keys).astype(np.uint64) * np.uint64(count) // np.uint64(BUCKETS)).astype(
        np.uint32
    )
