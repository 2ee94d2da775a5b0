"""`statistics`: what is known of rows beside their numbers; no visit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hybridps.errors import BadInputError, HybridPSError
from hybridps.keys import KeysLike
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Counts, Found, Keys, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.reading import splits_of
from hybridps.verbs.router import Split

_KEY_BYTES: Final = 8
# The most keys that a server looks at in one call.
_KEYS_MAX: Final = 1 << 16
# By their numbers on the wire.
_TIERS: Final = np.array(["", "dram", "nvme", "cold"])

# Of each key its training reads, the second of the last, and the number of its tier.
Told = tuple[Counts, Counts, NDArray[np.uint8]]


class Statistics(NamedTuple):
    """What is known of the rows of some keys: arrays of the keys' shape.

    By name (`statistics.found`, `statistics["found"]`), or in this order.
    """

    # uint32: training reads, saturating.
    frequency: NDArray[np.uint32]
    # int64: Unix seconds when it was last seen in training: read for it, pushed or assigned.
    last_seen: NDArray[np.int64]
    # str: "dram", "nvme" or "cold", where the row is served from; "" where there is none.
    tier: NDArray[np.str_]
    # bool: the key has a row. Where it has none all else is zero.
    found: Found

    def __getitem__(self, at: Any) -> Any:
        return getattr(self, at) if isinstance(at, str) else tuple.__getitem__(self, at)


@dataclass(frozen=True, slots=True)
class StatisticsOf(Cold[Told]):
    """Statistics of some keys, in their order."""

    VERB = "statistics"
    ORDER = Order.READ
    LANE = Lane.READS
    RIGHT = Right.READ

    table: int
    keys: Keys

    def run(self, site: Site) -> Told:
        """Those on the device cost a read each."""
        frequency, last_seen, tier = site.store.statistics([(self.table, self.keys)])
        return frequency, last_seen, np.frombuffer(tier, np.uint8)

    def fill(self, params: Any) -> None:
        """As in every message: 8 bytes a key."""
        params.table = self.table
        params.keys = self.keys.astype("<u8", copy=False).tobytes()

    @classmethod
    def read(cls, params: Any) -> Self:
        """Every length that is no multiple of a key's is refused."""
        keys = params.keys
        if len(keys) % _KEY_BYTES:
            raise BadInputError(f"statistics: keys hold {len(keys)} bytes; give {_KEY_BYTES} a key")
        return cls(params.table, np.frombuffer(keys, "<u8").astype(np.uint64))

    @classmethod
    def answer(cls, results: Any, value: Told) -> None:
        """Array by array."""
        frequency, last_seen, tier = value
        results.frequency = frequency.astype("<u4", copy=False).tobytes()
        results.lastSeen = last_seen.astype("<u4", copy=False).tobytes()
        results.tier = tier.tobytes()

    @classmethod
    def result(cls, results: Any) -> Told:
        """As above; a tier of the future is refused."""
        frequency = np.frombuffer(results.frequency, "<u4").astype(np.uint32)
        last_seen = np.frombuffer(results.lastSeen, "<u4").astype(np.uint32)
        tier = np.frombuffer(bytes(results.tier), np.uint8)
        if not len(frequency) == len(last_seen) == len(tier) or (tier >= len(_TIERS)).any():
            raise HybridPSError("the server answered statistics that this client cannot read")
        return frequency, last_seen, tier


def _pieces(split: Split) -> Iterator[tuple[int, slice]]:
    """What is asked of whom: parts of the unique keys, in their order."""
    for shard in split.shards():
        part = split.part(shard)
        for start in range(part.start, max(part.stop, part.start + 1), _KEYS_MAX):
            yield shard, slice(start, min(start + _KEYS_MAX, part.stop))


def statistics(catalog: Catalog, handle: Handle, keys: KeysLike) -> Steps[Statistics]:
    """Each unique key once, then in the order of the caller's."""
    (split,) = yield from splits_of(catalog, [handle], [keys])
    ids, pieces = split.batch.table.ids, list(_pieces(split))
    replies: list[Told] = yield [
        (shard, StatisticsOf(ids[shard], split.keys[piece])) for shard, piece in pieces
    ]
    for (_, piece), (_, _, tiers) in zip(pieces, replies, strict=True):
        if len(tiers) != piece.stop - piece.start:
            raise HybridPSError(f"the server answered {len(tiers)} keys of {piece}")
    frequency, last_seen, tier = (np.concatenate(arrays) for arrays in zip(*replies, strict=True))
    return Statistics(
        split.spread(frequency),
        split.spread(last_seen.astype(np.int64)),
        split.spread(_TIERS[tier]),
        split.spread(tier != 0),
    )


class StatisticsOfTable(TableFace):
    """`Table.statistics`."""

    @verb
    def statistics(self, keys: KeysLike, *, timeout: float | None = None) -> Run[Statistics]:
        """Training reads, last use and tier of rows, arrays of the keys' shape; absent keys have
        found False, tier "" and zeros.

        No visit: it neither inserts nor counts, and no row moves. A row in DRAM costs a look, one
        on NVMe a device read (shared by neighbours), counted in background_reads.

        Raises:  BadInputError, TableNotFoundError, CorruptionError (a row cannot be read),
                 UnavailableError, DeadlineError.
        """
        return self._run(statistics(self._catalog, self._handle, keys), timeout)
