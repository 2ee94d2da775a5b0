"""`inspect`: a row as it is stored, for people who ask why; no visit."""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from hybridps.errors import BadInputError
from hybridps.keys import KeysLike
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Keys, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.reading import splits_of

_KEY_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Inspected:
    """A key, and its row as it is stored now."""

    key: int
    # "dram", "nvme" or "cold"; None: it has no row, and all that follows is zero or None.
    tier: str | None
    # Byte offset of its record in the file of its tier; None: it was never written.
    place: int | None
    # The row in DRAM is newer than that record.
    dirty: bool
    # The last call that changed it, in the one order of its server.
    sequence: int
    # Training reads; and Unix seconds when it was last seen in training: read for it, pushed or
    # assigned.
    frequency: int
    last_seen: int
    # Euclidean length of the value, optimizer slots left out.
    norm: float
    # Why the row cannot be read.
    error: str | None


@dataclass(frozen=True, slots=True)
class Inspect(Cold[list[Inspected]]):
    """Rows of some keys, in their order."""

    VERB = "inspect"
    ORDER = Order.READ
    LANE = Lane.READS
    RIGHT = Right.READ

    table: int
    keys: Keys

    def run(self, site: Site) -> list[Inspected]:
        """Those on the device cost a read each."""
        rows = site.store.inspect([(self.table, self.keys)])
        return [Inspected(key, *row) for key, row in zip(self.keys.tolist(), rows, strict=True)]

    def fill(self, params: Any) -> None:
        """As in every message: 8 bytes a key."""
        params.table = self.table
        params.keys = self.keys.astype("<u8", copy=False).tobytes()

    @classmethod
    def read(cls, params: Any) -> Self:
        """Every length that is no multiple of a key's is refused."""
        keys = params.keys
        if len(keys) % _KEY_BYTES:
            raise BadInputError(f"inspect: keys hold {len(keys)} bytes; give {_KEY_BYTES} a key")
        return cls(params.table, np.frombuffer(keys, "<u8").astype(np.uint64))

    @classmethod
    def answer(cls, results: Any, value: list[Inspected]) -> None:
        """Row by row."""
        for row, inspected in zip(results.init("rows", len(value)), value, strict=True):
            row.key = inspected.key
            row.tier = inspected.tier or ""
            row.hasPlace = inspected.place is not None
            row.place = inspected.place or 0
            row.dirty = inspected.dirty
            row.sequence = inspected.sequence
            row.frequency = inspected.frequency
            row.lastSeen = inspected.last_seen
            row.norm = inspected.norm
            row.error = inspected.error or ""

    @classmethod
    def result(cls, results: Any) -> list[Inspected]:
        """As above."""
        return [
            Inspected(
                key=row.key,
                tier=str(row.tier) or None,
                place=row.place if row.hasPlace else None,
                dirty=row.dirty,
                sequence=row.sequence,
                frequency=row.frequency,
                last_seen=row.lastSeen,
                norm=row.norm,
                error=str(row.error) or None,
            )
            for row in results.rows
        ]


def inspect(catalog: Catalog, handle: Handle, keys: KeysLike) -> Steps[list[Inspected]]:
    """Each unique key once, then in the order of the caller's."""
    (split,) = yield from splits_of(catalog, [handle], [keys])
    ids = split.batch.table.ids
    calls = [
        (shard, Inspect(ids[shard], split.keys[split.part(shard)])) for shard in split.shards()
    ]
    replies: list[list[Inspected]] = yield calls
    of_key = {row.key: row for reply in replies for row in reply}
    return [of_key[key] for key in split.batch.keys.tolist()]


class InspectOfTable(TableFace):
    """`Table.inspect`."""

    @verb
    def inspect(self, keys: KeysLike, *, timeout: float | None = None) -> Run[list[Inspected]]:
        """Where rows are and what is known of them, in the order of the (flattened) keys.

        No visit: counts, last use and the place of a row stay as they are. At most 65,536 keys a
        call; a row on NVMe costs a read. Absent keys have tier None; damaged rows an error.

        Raises:  BadInputError, TableNotFoundError, UnavailableError, DeadlineError.
        """
        return self._run(inspect(self._catalog, self._handle, keys), timeout)
