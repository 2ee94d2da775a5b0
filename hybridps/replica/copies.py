"""The tables of a replica in its own store: rows are put there by `assign` and taken by `remove`,
as for any client. Off the event loop; one caller at a time.
"""

import secrets
from collections.abc import Iterator
from typing import Final

import numpy as np

from hybridps import _core
from hybridps.optimizers import SGD
from hybridps.replica.feed import PageNews
from hybridps.types import TableSpec
from hybridps.verbs.calls import Keys, Rows

# What is looked at of the rows here when a page takes their place.
_LISTED_BYTES: Final = 1 << 20
# Keys whose rows are looked for at a time.
_ASKED_KEYS: Final = 4096


class Copies:
    """See the module."""

    def __init__(self, store: _core.Store) -> None:
        self._store = store
        self._session = secrets.randbits(63) + 1
        self._number = 0
        self.ids = {name: store.table(name)[0] for name in store.tables()}

    def make(self, spec: TableSpec) -> None:
        """An empty table of that name. Values alone: no optimizer ever runs here."""
        self.drop(spec.name)
        plain = TableSpec(
            name=spec.name,
            dim=spec.dim,
            optimizer=SGD(learning_rate=1.0),
            initializer=spec.initializer,
            seed=spec.seed,
        )
        self.ids[spec.name] = self._store.create_table(plain.to_json())[0]

    def drop(self, name: str) -> None:
        """The table goes, if it is there."""
        if self.ids.pop(name, None) is not None:
            self._store.drop_table(name)

    def apply(self, news: PageNews) -> int:
        """A page; the number of rows that it changed. Of a table that is not here nothing."""
        table = self.ids.get(news.table)
        if table is None:
            return 0
        removed = 0
        if news.cells is not None:
            for keys in self._listed(table, news.cells):
                removed += self._remove(table, np.setdiff1d(keys, news.keys))
        removed += self._remove(table, news.removed)
        self.put(table, news.keys, news.rows)
        return removed + len(news.keys)

    def put(self, table: int, keys: Keys, rows: Rows) -> None:
        """Rows of keys."""
        if len(keys):
            self._number += 1
            batch = (table, np.ascontiguousarray(keys), np.ascontiguousarray(rows))
            self._store.assign(self._session, self._number, [batch])

    def absent(self, table: int, keys: Keys) -> Keys:
        """Those of the keys that have no row here, each once."""
        unique = np.unique(keys)
        lacking = [np.zeros(0, np.uint64)]
        for start in range(0, len(unique), _ASKED_KEYS):
            part = unique[start : start + _ASKED_KEYS]
            ((_, found),) = self._store.lookup([(table, part)], True)
            lacking.append(part if found is None else part[~found])
        return np.concatenate(lacking)

    def _remove(self, table: int, keys: Keys) -> int:
        if not len(keys):
            return 0
        self._number += 1
        return self._store.remove(self._session, self._number, [(table, keys)])

    def _listed(self, table: int, cells: tuple[int, int]) -> Iterator[Keys]:
        """Keys of the rows that are in these cells."""
        at, end = cells
        while at < end:
            _, keys, _, at = self._store.changes(table, (at, end), None, _LISTED_BYTES)
            yield keys
