"""`cursor` and `changes` as one server is asked: where its store is now, and a page of what changed
in one table. How pages of several tables and servers become one stream: `pull`.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hybridps.errors import HybridPSError
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Keys, Rows, Site
from hybridps.verbs.kinds import Lane, Order

PAGE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A table as one server has it."""

    id: int
    dim: int


@dataclass(frozen=True, slots=True)
class Now:
    """A moment of one server's store."""

    # 32 hexadecimal digits: which store it is.
    store: str
    # All changes up to here are made, later ones are above.
    sequence: int
    tables: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Page:
    """What changed in some cells of a table: every key once, in `keys` or in `removed`."""

    removed: Keys
    keys: Keys
    rows: Rows
    # The page covers the cells below this one.
    next: int


@dataclass(frozen=True, slots=True)
class NowOf(Cold[Now]):
    """Where a server's store is now."""

    VERB = "cursor"
    # It is above every earlier push of the connection.
    ORDER = Order.READ
    LANE = Lane.CHANGES
    RIGHT = Right.READ

    def run(self, site: Site) -> Now:
        """Waits for the turns of calls that are ordered by now."""
        store, sequence, tables = site.store.cursor()
        return Now(store, sequence, {name: Entry(table, dim) for name, table, dim in tables})

    @classmethod
    def answer(cls, results: Any, value: Now) -> None:
        """Table by table."""
        results.store, results.sequence = value.store, value.sequence
        filled = results.init("tables", len(value.tables))
        for entry, (name, table) in zip(filled, value.tables.items(), strict=True):
            entry.name, entry.id, entry.dim = name, table.id, table.dim

    @classmethod
    def result(cls, results: Any) -> Now:
        """As above."""
        tables = {str(entry.name): Entry(entry.id, entry.dim) for entry in results.tables}
        return Now(str(results.store), results.sequence, tables)


@dataclass(frozen=True, slots=True)
class Changes(Cold[Page]):
    """A page of what changed in a table since `since`; None: all its rows."""

    VERB = "changes"
    # Long, and of many calls: what is pushed between two of them is told in one or the other.
    ORDER = Order.FREE
    LANE = Lane.CHANGES
    RIGHT = Right.READ
    REPLY_MAX_BYTES = 2 * PAGE_BYTES

    table: int
    start: int
    end: int
    since: int | None
    bytes: int

    def run(self, site: Site) -> Page:
        """The device may be waited for; a page has at least one row, and no more than fit."""
        info = site.info
        most = min(PAGE_BYTES, info.frame_limit // 2) if info.frame_limit else PAGE_BYTES
        cells = (self.start, self.end)
        told = site.store.changes(self.table, cells, self.since, min(self.bytes, most))
        removed, keys, rows, following = told
        return Page(removed, keys, _shaped(keys, rows), following)

    def fill(self, params: Any) -> None:
        """Nothing is known where `hasSince` is false."""
        params.table, params.start, params.end = self.table, self.start, self.end
        params.hasSince, params.since = self.since is not None, self.since or 0
        params.bytes = self.bytes

    @classmethod
    def read(cls, params: Any) -> "Changes":
        """The engine checks the numbers."""
        since = params.since if params.hasSince else None
        return cls(params.table, params.start, params.end, since, params.bytes)

    @classmethod
    def answer(cls, results: Any, value: Page) -> None:
        """Arrays as in every message."""
        results.removed = value.removed.astype("<u8", copy=False).tobytes()
        results.keys = value.keys.astype("<u8", copy=False).tobytes()
        results.rows = value.rows.astype("<f4", copy=False).tobytes()
        results.next = value.next

    @classmethod
    def result(cls, results: Any) -> Page:
        """As above; numbers that are not so many a key are refused."""
        keys = np.frombuffer(results.keys, "<u8").astype(np.uint64, copy=False)
        rows = np.frombuffer(results.rows, "<f4").astype(np.float32, copy=False)
        removed = np.frombuffer(results.removed, "<u8").astype(np.uint64, copy=False)
        return Page(removed, keys, _shaped(keys, rows), results.next)


def _shaped(keys: Keys, rows: Rows) -> Rows:
    if rows.size % max(keys.size, 1) or (rows.size and not keys.size):
        raise HybridPSError(f"the server answered {rows.size} numbers for {keys.size} keys")
    return rows.reshape(keys.size, rows.size // max(keys.size, 1))
