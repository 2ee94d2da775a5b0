"""`lookup(pool=)`: one row a bag of keys, summed where the rows are. Its faces are `lookup`'s."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hybridps import _core
from hybridps.keys import KeysLike
from hybridps.security.rights import Right
from hybridps.verbs.bags import Bags, Piece, Weights, added, as_bags, as_out, pieces_of
from hybridps.verbs.batches import RowsLike
from hybridps.verbs.calls import Begun, Counts, Hot, Keys, Rows, Site
from hybridps.verbs.catalog import Catalog, Handle, resolve
from hybridps.verbs.face import Steps
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.reading import rows_of

# Keys below it travel in four bytes.
_NARROW_END = 1 << 32


@dataclass(frozen=True, slots=True)
class LookupPooled(Hot[list[Rows]]):
    """Sums of bags, one array a table."""

    VERB = "lookup_pooled"
    ORDER = Order.READ
    LANE = Lane.READS
    RIGHT = Right.READ

    tables: Sequence[tuple[int, Keys, Counts, Weights | None]]

    @classmethod
    def spoken(cls) -> str:
        """Part of `lookup`."""
        return "lookup"

    def run(self, site: Site) -> list[Rows]:
        """The device may be waited for."""
        return site.store.lookup_pooled(self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys, sizes and weights behind a header."""
        if any(keys.size and keys.max() >= _NARROW_END for _, keys, _, _ in self.tables):
            return wire.lookup_pooled(self.tables, 8)
        narrow = [(t, keys.astype(np.uint32), bags, w) for t, keys, bags, w in self.tables]
        return wire.lookup_pooled(narrow, 4)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> list[Rows]:
        """Views of the received frame."""
        return [rows for rows, _ in rows_of([bags for _, _, bags, _ in self.tables], answer)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a table is asked for."""

    keys: KeysLike
    offsets: ArrayLike | None = None
    weights: RowsLike | None = None
    out: object = None


def lookup_pooled(
    catalog: Catalog, handles: Sequence[Handle], asked: Sequence[Asked], pool: str
) -> Steps[list[Rows]]:
    """One Rows a table, a row a bag."""
    tables: list[Bags] = []
    for handle, of in zip(handles, asked, strict=True):
        ref = yield from resolve(catalog, handle)
        bags = as_bags(ref, of.keys, of.offsets, of.weights)
        if of.out is not None:
            as_out(of.out, bags.rows_shape, ref.name)
        tables.append(bags)
    answers = yield from _answers(tables, pieces_of(tables, catalog.shards, catalog.limits()))
    results = []
    for of, bags, sums in zip(asked, tables, added(tables, answers), strict=True):
        rows = bags.divided(sums, pool).reshape(bags.rows_shape)
        if of.out is not None:
            written = as_out(of.out, bags.rows_shape, bags.batch.table.name)
            np.copyto(written, rows)
            rows = written
        results.append(rows)
    return results


def _answers(
    tables: Sequence[Bags], calls: dict[int, list[list[Piece]]]
) -> Steps[list[tuple[list[Piece], Any]]]:
    """Pieces and what they were answered with, server after server."""
    by_shard: dict[int, list[tuple[list[Piece], Any]]] = {shard: [] for shard in calls}
    for number in range(max(map(len, calls.values()), default=0)):
        now = {shard: own[number] for shard, own in calls.items() if number < len(own)}
        replies = yield [(shard, _call(tables, shard, own)) for shard, own in now.items()]
        for (shard, own), reply in zip(now.items(), replies, strict=True):
            by_shard[shard].append((own, reply))
    return [pair for pairs in by_shard.values() for pair in pairs]


def _call(tables: Sequence[Bags], shard: int, pieces: Sequence[Piece]) -> LookupPooled:
    return LookupPooled(
        [(tables[p.index].batch.table.ids[shard], p.keys, p.sizes, p.weights) for p in pieces]
    )
