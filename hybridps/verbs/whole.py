"""`export_rows` and `import_rows` as one server is asked: rows whole, for files of tables.

A whole row is one float32 array: value, slots if they come along, then training reads and Unix
seconds of the last as the bits of two uint32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridps import _core
from hybridps.errors import HybridPSError
from hybridps.placement import CELLS
from hybridps.security.rights import Right
from hybridps.verbs.calls import Begun, Cold, Keys, Push, Rows, Site
from hybridps.verbs.changes import PAGE_BYTES
from hybridps.verbs.kinds import Lane, Order


@dataclass(frozen=True, slots=True)
class WholePage:
    """Rows of some cells, each key once."""

    keys: Keys
    rows: Rows
    # The page covers the cells below this one.
    next: int

    @property
    def is_last(self) -> bool:
        """Whether it covers all cells."""
        return self.next >= CELLS


@dataclass(frozen=True, slots=True)
class ExportRows(Cold[WholePage]):
    """A page of whole rows in cells [start, end)."""

    VERB = "export_rows"
    # As `changes`: long, of many calls, each row as of some moment of them.
    ORDER = Order.FREE
    LANE = Lane.CHANGES
    # Slots are nobody's business who may only look.
    RIGHT = Right.TRAIN
    REPLY_MAX_BYTES = 2 * PAGE_BYTES

    table: int
    start: int
    end: int
    want_slots: bool
    bytes: int

    def run(self, site: Site) -> WholePage:
        """The device may be waited for; a page has at least one row, and no more than fit."""
        limit = site.info.frame_limit
        most = min(self.bytes, PAGE_BYTES, limit // 2 if limit else PAGE_BYTES)
        cells = (self.start, self.end)
        keys, rows, following = site.store.export_rows(self.table, cells, self.want_slots, most)
        return WholePage(keys, _shaped(keys, rows), following)

    @classmethod
    def answer(cls, results: Any, value: WholePage) -> None:
        """Arrays as in every message."""
        results.keys = value.keys.astype("<u8", copy=False).tobytes()
        results.rows = value.rows.astype("<f4", copy=False).tobytes()
        results.next = value.next

    @classmethod
    def result(cls, results: Any) -> WholePage:
        """As above; numbers that are not so many a key are refused."""
        keys = np.frombuffer(results.keys, "<u8").astype(np.uint64, copy=False)
        rows = np.frombuffer(results.rows, "<f4").astype(np.float32, copy=False)
        return WholePage(keys, _shaped(keys, rows), results.next)


@dataclass(frozen=True, slots=True)
class ImportRows(Push[None]):
    """Whole rows of one table; without slots, present ones keep theirs."""

    VERB = "import_rows"

    tables: Sequence[tuple[int, Keys, Rows]]

    def run(self, site: Site) -> None:
        """Room in the log, and syncs of the journal, may be waited for."""
        site.store.import_rows(site.session, site.number, self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys and rows behind a header."""
        return wire.import_rows(number, self.tables, total)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> None:
        """They are set."""


def _shaped(keys: Keys, rows: Rows) -> Rows:
    if rows.size % max(keys.size, 1) or (rows.size and not keys.size):
        raise HybridPSError(f"the server answered {rows.size} numbers for {keys.size} keys")
    return rows.reshape(keys.size, rows.size // max(keys.size, 1))
