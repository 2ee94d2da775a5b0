"""`lookup_or_insert`: rows for training. Creates absent ones, counts, marks the last use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from hybridps import _core
from hybridps.errors import BadInputError
from hybridps.keys import KeysLike
from hybridps.security.rights import Right
from hybridps.verbs.batches import as_counts
from hybridps.verbs.calls import Begun, Counts, Hot, Keys, Rows, Site
from hybridps.verbs.catalog import Catalog, Handle, StoreFace, TableFace, TableT, check_mapping
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.reading import Part, read, rows_of, splits_of


@dataclass(frozen=True, slots=True)
class LookupOrInsert(Hot[list[Rows]]):
    """Rows, one array a table. Sent again after a lost connection, counts may be added twice."""

    VERB = "lookup_or_insert"
    ORDER = Order.READ
    LANE = Lane.PUSHES
    RIGHT = Right.TRAIN

    tables: Sequence[tuple[int, Keys, Counts | None]]

    def run(self, site: Site) -> list[Rows]:
        """Room in the log may be waited for."""
        return site.store.lookup_or_insert(self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys and counts behind a header."""
        return wire.lookup_or_insert(self.tables)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> list[Rows]:
        """Views of the received frame."""
        return [rows for rows, _ in rows_of([keys for _, keys, _ in self.tables], answer)]


def lookup_or_insert(
    catalog: Catalog,
    handles: Sequence[Handle],
    keys: Sequence[KeysLike],
    counts: Sequence[ArrayLike | None],
) -> Steps[list[Rows]]:
    """One Rows a table."""
    splits = yield from splits_of(catalog, handles, keys)
    sums = [
        split.counts(as_counts(split.batch, table_counts))
        for split, table_counts in zip(splits, counts, strict=True)
    ]

    def call(parts: list[Part]) -> LookupOrInsert:
        tables = []
        for split, shard, piece, index in parts:
            total = sums[index]
            counted = None if total is None else total[piece]
            tables.append((split.batch.table.ids[shard], split.keys[piece], counted))
        return LookupOrInsert(tables)

    replies = yield from read(splits, call)
    return [split.rows(part) for split, part in zip(splits, replies, strict=True)]


def split_counts(
    names: Sequence[str], counts: Mapping[str, ArrayLike] | None
) -> list[ArrayLike | None]:
    """The counts of each table of the call, None where none were given."""
    if counts is None:
        return [None] * len(names)
    check_mapping(counts, "counts=")
    strays = [name for name in counts if name not in names]
    if strays:
        raise BadInputError(
            f"counts name table {strays[0]!r}, keys are of {list(names)}; give counts of those"
        )
    return [counts.get(name) for name in names]


class LookupOrInsertOfTable(TableFace):
    """`Table.lookup_or_insert`."""

    @verb
    def lookup_or_insert(
        self, keys: KeysLike, counts: ArrayLike | None = None, *, timeout: float | None = None
    ) -> Run[Rows]:
        """Rows of keys, for training: creates absent ones, counts, marks the last use.

        Args:    counts: uint32 of the keys' shape, None for one per occurrence; repeats add up.
        Returns: float32[keys.shape + (dim,)]; a fresh array.
        Raises:  as `lookup`, and StoreFullError.
        """
        return self._run(self._lookup_or_insert(keys, counts), timeout)

    def _lookup_or_insert(self, keys: KeysLike, counts: ArrayLike | None) -> Steps[Rows]:
        (rows,) = yield from lookup_or_insert(self._catalog, [self._handle], [keys], [counts])
        return rows


class LookupOrInsertOfStore(StoreFace[TableT]):
    """`ParameterServer.lookup_or_insert`."""

    @verb
    def lookup_or_insert(
        self,
        batches: Mapping[str, KeysLike],
        counts: Mapping[str, ArrayLike] | None = None,
        *,
        timeout: float | None = None,
    ) -> Run[dict[str, Rows]]:
        """`Table.lookup_or_insert` of several tables in one pass."""
        check_mapping(batches, "lookup_or_insert")
        names, keys = list(batches), list(batches.values())
        counted = split_counts(names, counts)
        return self._run_to_dict(lookup_or_insert, names, keys, counted, timeout=timeout)
