"""`size` and `keys`: how many rows a table has, and which."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridps.placement import BUCKETS
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Keys, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace, on_each, resolve
from hybridps.verbs.face import Run, Steps, verb, walk
from hybridps.verbs.kinds import Lane, Order


@dataclass(frozen=True, slots=True)
class Size(Cold[int]):
    """Rows of a table, in all tiers."""

    VERB = "size"
    ORDER = Order.READ
    LANE = Lane.LOOKS
    RIGHT = Right.READ

    table: int

    def run(self, site: Site) -> int:
        """Counted as they come and go."""
        return site.store.size(self.table)

    @classmethod
    def answer(cls, results: Any, value: int) -> None:
        """The count."""
        results.keys = value

    @classmethod
    def result(cls, results: Any) -> int:
        """As above."""
        return int(results.keys)


@dataclass(frozen=True, slots=True)
class KeysOf(Cold[tuple[Keys, int]]):
    """Keys of buckets [bucket, next), and next, which the server chooses; 4096 ends the walk."""

    VERB = "keys"
    ORDER = Order.READ
    LANE = Lane.ORDERS
    RIGHT = Right.READ

    table: int
    bucket: int

    def run(self, site: Site) -> tuple[Keys, int]:
        """Walks some of the index."""
        return site.store.keys(self.table, self.bucket)

    @classmethod
    def answer(cls, results: Any, value: tuple[Keys, int]) -> None:
        """Both."""
        keys, following = value
        results.keys = keys.astype("<u8", copy=False).tobytes()
        results.next = following

    @classmethod
    def result(cls, results: Any) -> tuple[Keys, int]:
        """As above."""
        return np.frombuffer(results.keys, "<u8").astype(np.uint64, copy=False), results.next


def size(catalog: Catalog, handle: Handle) -> Steps[int]:
    """Rows of a table, in all tiers, on all servers."""
    return sum((yield from on_each(catalog, handle, Size)))


class _Place:
    """Where a walk over the keys of all servers has come to."""

    def __init__(self) -> None:
        self.shard = 0
        self.bucket = 0


def _page(catalog: Catalog, handle: Handle, place: _Place) -> Steps[Keys | None]:
    """Keys of some buckets of one server, if there are any; the place moves behind them."""
    ref = yield from resolve(catalog, handle)
    ((keys, following),) = yield [(place.shard, KeysOf(ref.ids[place.shard], place.bucket))]
    place.bucket = following
    if following >= BUCKETS:
        place.shard, place.bucket = place.shard + 1, 0
    return keys if keys.size else None


class ListingOfTable(TableFace):
    """`Table.size` and `keys`."""

    @verb
    def size(self, *, timeout: float | None = None) -> Run[int]:
        """Rows in all tiers; `len` where it need not be awaited."""
        return self._run(size(self._catalog, self._handle), timeout)

    @walk
    def keys(self, *, timeout: float | None = None) -> Iterator[Run[Keys | None]]:
        """uint64 arrays that together hold every key once, in no order; for tools and tests."""
        place = _Place()
        while place.shard < self._catalog.shards:
            yield self._run(_page(self._catalog, self._handle, place), timeout)
