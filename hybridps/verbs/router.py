"""From a batch to unique keys per server, and from the servers' replies back to the batch.

Pure. The same code serves one store in this process and any number of servers, so that results do
not depend on how many there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridps import _core
from hybridps.errors import HybridPSError
from hybridps.verbs.batches import Batch, check_finite
from hybridps.verbs.calls import Counts, Found, Keys, Rows

S = TypeVar("S", bound=np.generic)

# A key and a count on the way there; the flag of a found key beside its row on the way back.
_ASKED_BYTES: Final = 8 + 4
_FLAG_BYTES: Final = 1


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What one read may ask of every server: a server's defaults, or less if one of them takes
    less. Not more: larger messages would only hold more memory.
    """

    keys: int = 1 << 20
    frame_bytes: int = 64 << 20
    # Not a server: repeated keys are merged there, and gradients checked.
    merges: bool = False

    def within(self, keys: int, frame_bytes: int) -> "ReadLimits":
        """These, and those of one more server."""
        return ReadLimits(min(self.keys, keys), min(self.frame_bytes, frame_bytes))

    def keys_max(self, dim: int) -> int:
        """The most keys whose rows fit one reply; some room is left for what is not rows."""
        room_bytes = self.frame_bytes - self.frame_bytes // 16
        return max(1, min(self.keys, room_bytes // max(4 * dim + _FLAG_BYTES, _ASKED_BYTES)))


DEFAULT_LIMITS: Final = ReadLimits()
_NONE: Final = np.zeros(0, np.uint32)


@dataclass(frozen=True, slots=True)
class Split:
    """The unique keys of a batch, server after server; or, for a store that merges repeated keys
    and checks numbers itself, the batch as it is.
    """

    batch: Batch
    keys: Keys
    offsets: Sequence[int]
    inverse: NDArray[np.uint32]
    limits: ReadLimits = DEFAULT_LIMITS

    @property
    def servers(self) -> int:
        """How many servers share the keys."""
        return len(self.offsets) - 1

    @property
    def is_same(self) -> bool:
        """True if the batch goes as it is: one server, no repeats, hence the order of the ids."""
        return self.servers == 1 and not self.has_repeats

    @property
    def has_repeats(self) -> bool:
        """True if some key occurs twice, of a batch that is merged here."""
        return len(self.keys) != len(self.batch.keys)

    @property
    def read_keys_max(self) -> int:
        """The most keys whose rows fit one reply."""
        return self.limits.keys_max(self.batch.table.dim)

    @property
    def fits_one_read(self) -> bool:
        """True if one reply holds all rows."""
        return len(self.keys) <= self.read_keys_max

    def part(self, shard: int) -> slice:
        """Where the keys of a server lie."""
        return slice(self.offsets[shard], self.offsets[shard + 1])

    def shards(self) -> list[int]:
        """Servers that own keys of this batch; the first one for an empty batch."""
        owners = [s for s in range(self.servers) if self.offsets[s] < self.offsets[s + 1]]
        return owners or [0]

    def counts(self, counts: Counts | None) -> Counts | None:
        """Occurrences per unique key; None where each counts once."""
        if counts is not None:
            return (
                counts if self.is_same else _core.sum_counts(counts, self.inverse, len(self.keys))
            )
        if not self.has_repeats:
            return None
        return np.bincount(self.inverse, minlength=len(self.keys)).astype(np.uint32)

    def last(self, rows: Rows) -> Rows:
        """The row of the last occurrence of each unique key."""
        if self.is_same:
            return rows
        last = np.zeros(len(self.keys), np.intp)
        last[self.inverse] = np.arange(len(self.inverse))
        return rows[last]

    def sums(self, gradients: Rows) -> dict[int, tuple[Keys, Rows]]:
        """For each server its keys and their gradients, summed in order of occurrence.

        Where finite gradients sum to infinity the occurrences are sent as they are: the engine
        sums them the same way and keeps the old row, whereas an infinite gradient is refused.
        """
        if self.limits.merges:
            return {0: (self.keys, gradients)}
        if self.is_same:
            return {0: (self.keys, check_finite(self.batch, gradients, "gradients"))}
        sums, are_finite = _core.sum_rows(gradients, self.inverse, len(self.keys))
        if not are_finite:
            check_finite(self.batch, gradients, "gradients")
            return self.occurrences(gradients)
        return {s: (self.keys[self.part(s)], sums[self.part(s)]) for s in self.shards()}

    def occurrences(self, rows: Rows) -> dict[int, tuple[Keys, Rows]]:
        """For each server its keys and their rows, repeats included, in the order of the batch."""
        if self.servers == 1:
            return {0: (self.batch.keys, rows)}
        parts = {}
        for shard in self.shards():
            part = self.part(shard)
            mine = (self.inverse >= part.start) & (self.inverse < part.stop)
            parts[shard] = (self.batch.keys[mine], rows[mine])
        return parts

    def rows(self, parts: Sequence[Rows]) -> Rows:
        """Rows in the shape of the batch from the replies of `shards()`, in that order."""
        if not self.batch.keys.size:
            return np.zeros(self.batch.rows_shape, np.float32)
        table = self.batch.table
        if any(part.shape[1] != table.dim for part in parts):
            raise HybridPSError(f"table {table.name!r}: the server's rows are not of {table.dim}")
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not self.is_same:
            unique, rows = rows, np.empty((len(self.inverse), rows.shape[1]), np.float32)
            _core.gather(unique, self.inverse, rows)
        return rows.reshape(self.batch.rows_shape)

    def found(self, parts: Sequence[Found]) -> Found:
        """As `rows`, for the flags."""
        return self.spread(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def spread(self, of_unique: NDArray[S]) -> NDArray[S]:
        """What there is one of for each unique key, in the shape of the batch."""
        if not self.is_same:
            of_unique = of_unique[self.inverse]
        return of_unique.reshape(self.batch.shape)


def split(batch: Batch, shards: int, limits: ReadLimits = DEFAULT_LIMITS) -> Split:
    """The unique keys of a batch for `shards` servers of those limits; all, if they merge."""
    if limits.merges:
        return Split(batch, batch.keys, (0, len(batch.keys)), _NONE, limits)
    keys, offsets, inverse = _core.unique(batch.keys, shards)
    return Split(batch, keys, offsets, inverse, limits)
