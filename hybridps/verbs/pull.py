"""`cursor` and `changes` as users call them: one stream of what changed, of several tables on
several servers, from a cursor on. Nothing is kept there: all that a pull knows is its `Position`.

A pull looks where every server is, and then goes through the cells of each table that may have
changed until that moment, page by page, all servers side by side. When all are through it looks
again. A table whose id is another one was dropped, made, or made anew: its copy is emptied, once,
before any of its rows is told.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, Generic, TypeVar

import numpy as np

from hybridps.errors import BadInputError, CursorError, HybridPSError, TableNotFoundError
from hybridps.placement import cells_of
from hybridps.verbs.calls import Keys, Rows
from hybridps.verbs.catalog import Catalog, StoreFace, TableT
from hybridps.verbs.changes import PAGE_BYTES, Changes, Now, NowOf, Page
from hybridps.verbs.face import Addressed, Pause, Run, Steps, verb, walk
from hybridps.verbs.position import Position, Progress, Shard

T = TypeVar("T")

# Between two looks, where nothing has changed.
_PAUSE_S: Final = 0.05
_NO_KEYS: Final = np.zeros(0, np.uint64)


class Change:
    """Some of what changed in one table. A key is in `keys` or in `removed`, and once.

    Without keys and removals it says that the table was made, dropped or made anew: from here on a
    copy of it is empty.
    """

    __slots__ = ("_cursor", "_position", "keys", "removed", "rows", "table")

    def __init__(
        self, table: str, keys: Keys, rows: Rows, removed: Keys, position: Position
    ) -> None:
        self.table = table
        # uint64[n], and their values as float32[n, dim]; uint64[m] of those that have no row now.
        self.keys = keys
        self.rows = rows
        self.removed = removed
        self._position = position
        self._cursor: str | None = None

    @property
    def cursor(self) -> str:
        """What to give as `since` to go on behind this change, perhaps in another process."""
        if self._cursor is None:
            self._cursor = self._position.to_text()
        return self._cursor

    def __repr__(self) -> str:
        return f"<change of {self.table!r}: {len(self.keys)} rows, {len(self.removed)} removed>"


class Walked(Generic[T]):
    """A position that moves on, and what is told on the way: T. Its steps are run one after the
    other. What a T is, a class below this one says.
    """

    def __init__(self, catalog: Catalog, since: str | None, tables: Sequence[str] | None) -> None:
        self._catalog = catalog
        names = _names(tables)
        self.position = Position(names, ())
        self._is_new = since is None
        if since is not None:
            self.position = _resumed(since, names, catalog.shards)
        self._dims: dict[str, int] = {}
        self._ready: deque[T] = deque()
        self._has_looked = False
        self._is_last = False
        # Nothing was to be done after the last look, or not yet.
        self.is_idle = False
        # Changes so far.
        self.told = 0

    @property
    def is_complete(self) -> bool:
        """True if all is told that had changed when the pull began."""
        return self._is_last and not self._ready and not self._due()

    def step(self) -> Steps[T | None]:
        """The next to be told, or a step towards it."""
        if not self._ready:
            due = self._due()
            if due and self._has_looked:
                yield from self._page(due)
            else:
                yield from self._look()
        if not self._ready:
            return None
        self.told += 1
        return self._ready.popleft()

    # Looking.

    def _look(self) -> Steps[None]:
        nows: list[Now] = yield self._catalog.everywhere(NowOf())
        if not self._is_new and self._met(nows):
            # Tables go and come server after server: who asks again sees on all of them whatever
            # came before what was seen on one.
            nows = yield self._catalog.everywhere(NowOf())
        self._check_stores(nows)
        self._check_names(nows)
        # What changes while rows are copied, or came after a pass of the cursor, is told too.
        self._is_last = not self._due()
        for name in self._met(nows):
            self._begin(name, nows)
        for shard, now in enumerate(nows):
            self._begin_pass(shard, now)
        self._is_new, self._has_looked = False, True
        self._is_last = self._is_last and not self._is_copying()
        self.is_idle = not self._due()

    def _met(self, nows: Sequence[Now]) -> list[str]:
        """Tables that are not what they were."""
        known = {name for shard in self.position.shards for name in shard.tables}
        names = self.position.names
        if names is None:
            names = tuple(known.union(*(now.tables for now in nows)))
        return sorted(name for name in names if self._ids(name) != _ids_of(name, nows))

    def _ids(self, name: str) -> list[int] | None:
        shards = self.position.shards
        if not shards or any(name not in shard.tables for shard in shards):
            return None
        return [shard.tables[name].id for shard in shards]

    def _check_stores(self, nows: Sequence[Now]) -> None:
        if not self.position.shards:
            self.position = replace(
                self.position, shards=tuple(Shard(now.store, {}) for now in nows)
            )
        for shard, now in zip(self.position.shards, nows, strict=True):
            if shard.store != now.store:
                raise CursorError(
                    f"the cursor is of store {shard.store[:8]}, the server has {now.store[:8]};"
                    " begin with since=None"
                )

    def _check_names(self, nows: Sequence[Now]) -> None:
        if not self._is_new:
            return
        for name in self.position.names or ():
            if _ids_of(name, nows) is None:
                raise TableNotFoundError(f"table {name!r} does not exist; create it first")

    def _begin(self, name: str, nows: Sequence[Now]) -> None:
        """A table was made, dropped or made anew: it is copied, if it is there."""
        is_there = _ids_of(name, nows) is not None
        for shard, now in enumerate(nows):
            entry = now.tables.get(name) if is_there else None
            first = self._cells(shard)[0]
            progress = None if entry is None else Progress(entry.id, None, now.sequence, first)
            self.position = self.position.with_table(shard, name, progress)
            if entry is not None:
                self._dims[name] = entry.dim
        self._note_table(name, is_there=is_there)

    def _begin_pass(self, shard: int, now: Now) -> None:
        """Goes through the tables of a server that may have changed."""
        for name, progress in self.position.shards[shard].tables.items():
            self._dims.setdefault(name, now.tables[name].dim)
            if progress.now is None and progress.since != now.sequence:
                first = self._cells(shard)[0]
                self._move(shard, name, replace(progress, now=now.sequence, at=first))

    def _is_copying(self) -> bool:
        tables = (t for shard in self.position.shards for t in shard.tables.values())
        return any(table.since is None for table in tables)

    # Pages.

    def _due(self) -> list[tuple[int, str, Progress]]:
        """The next page of each server that has one, with the table it is of."""
        due = []
        for number, shard in enumerate(self.position.shards):
            for name, progress in shard.tables.items():
                if progress.now is not None:
                    due.append((number, name, progress))
                    break
        return due

    def _page(self, asked: list[tuple[int, str, Progress]]) -> Steps[None]:
        calls: list[Addressed] = [
            (n, Changes(table.id, table.at, self._cells(n)[1], table.since, PAGE_BYTES))
            for n, _, table in asked
        ]
        try:
            pages: list[Page] = yield calls
        except TableNotFoundError:
            # It was dropped meanwhile: a look says so, now or soon.
            yield from self._look()
            self.is_idle = not self._ready
            return
        for (shard, name, progress), page in zip(asked, pages, strict=True):
            dim = self._dims[name]
            if page.rows.size != len(page.keys) * dim:
                raise HybridPSError(f"table {name!r}: the server's rows are not of {dim}")
            before = self.position
            if page.next >= self._cells(shard)[1]:
                self._move(shard, name, Progress(progress.id, progress.now))
            else:
                self._move(shard, name, replace(progress, at=page.next))
            self._note_page(shard, name, progress, page, before)

    def _cells(self, shard: int) -> tuple[int, int]:
        """Those of a server: no other has rows of it."""
        return cells_of(shard, self._catalog.shards)

    # What is told.

    def _note_table(self, name: str, *, is_there: bool) -> None:
        """A table was met, made, dropped, or made anew: a copy of it is empty from here on."""
        raise NotImplementedError

    def _note_page(
        self, shard: int, name: str, progress: Progress, page: Page, before: Position
    ) -> None:
        """A page has come, perhaps with nothing in it; `progress` and `before` are from before."""
        raise NotImplementedError

    def _move(self, shard: int, name: str, progress: Progress) -> None:
        self.position = self.position.with_table(shard, name, progress)


class Pull(Walked[Change]):
    """What changed, for users."""

    # The last page that told something: until the next one its cursor moves on.
    _held: tuple[str, Page] | None = None

    def _note_table(self, name: str, *, is_there: bool) -> None:
        if not self._is_new:
            none = np.zeros((0, self._dims.get(name, 0)), np.float32)
            self._ready.append(Change(name, _NO_KEYS, none, _NO_KEYS, self.position))

    def _note_page(
        self, shard: int, name: str, progress: Progress, page: Page, before: Position
    ) -> None:
        if len(page.keys) or len(page.removed):
            self._let_go(before)
            self._held = name, page
        if not self._due():
            self._let_go(self.position)

    def _let_go(self, position: Position) -> None:
        if self._held is not None:
            (name, page), self._held = self._held, None
            rows = page.rows.reshape(len(page.keys), self._dims[name])
            self._ready.append(Change(name, page.keys, rows, page.removed, position))


def _ids_of(name: str, nows: Sequence[Now]) -> list[int] | None:
    """Ids of a table that every server has."""
    if any(name not in now.tables for now in nows):
        return None
    return [now.tables[name].id for now in nows]


def _names(tables: object) -> tuple[str, ...] | None:
    if tables is None:
        return None
    names = () if isinstance(tables, str) or not isinstance(tables, Sequence) else tuple(tables)
    if not names or not all(isinstance(name, str) for name in names):
        raise BadInputError(f"tables is {tables!r}; give a list of names, or None for all")
    return names


def _resumed(since: object, names: tuple[str, ...] | None, servers: int) -> Position:
    """Where a cursor says that a pull was; of the tables it names, if it names any."""
    if not isinstance(since, str):
        raise BadInputError(f"since is {since!r}; give the str that a cursor is, or None")
    position = Position.from_text(since)
    if len(position.shards) != servers:
        raise CursorError(
            f"the cursor is of {len(position.shards)} servers, there are {servers}; begin with"
            " since=None"
        )
    of_each = [set(shard.tables) for shard in position.shards]
    if any(tables != of_each[0] for tables in of_each):
        raise CursorError("the cursor contradicts itself; begin with since=None")
    if position.names is None:
        kept = names
    else:
        kept = position.names if names is None else names
        for name in kept:
            if name not in position.names:
                raise CursorError(
                    f"the cursor says nothing of table {name!r}, which its pull had left out;"
                    " begin with since=None"
                )
    if kept is None:
        return position
    shards = (
        Shard(shard.store, {name: t for name, t in shard.tables.items() if name in kept})
        for shard in position.shards
    )
    return Position(kept, tuple(shards))


def _check_timeout(timeout: object) -> None:
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout >= 0):  # type: ignore[operator]
        raise BadInputError(f"timeout is {timeout!r}; give seconds, or None to wait for ever")


def cursor(catalog: Catalog) -> Steps[str]:
    """The cursor of now, of all tables that every server has."""
    nows: list[Now] = yield catalog.everywhere(NowOf())
    names = set.intersection(*(set(now.tables) for now in nows))
    shards = (
        Shard(now.store, {n: Progress(now.tables[n].id, now.sequence) for n in sorted(names)})
        for now in nows
    )
    return Position(None, tuple(shards)).to_text()


class ChangesOfStore(StoreFace[TableT]):
    """`ParameterServer.cursor` and `changes`."""

    @verb
    def cursor(self, *, timeout: float | None = None) -> Run[str]:
        """Now, on every server: given to `changes`, it tells all that comes later."""
        return Run(cursor(self._catalog), timeout)

    @walk
    def changes(
        self,
        since: str | None = None,
        tables: Sequence[str] | None = None,
        *,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Run[Change | None]]:
        """What changed since a cursor: rows whose value may have changed, with their value now, and
        keys that were removed; each at least once, and in an order in which the last word on a key
        is right. Who applies all has the table; twice does no harm.

        Costs what changed, not what there is; nothing is kept on the servers. About a mebibyte a
        change, values without optimizer slots. A table that was made, dropped or made anew is a
        change without keys and removals: from here on a copy of it is empty.

        Args:    since: `cursor()`, or the cursor of a change; None: all rows come first, and then
                 what changed meanwhile.
                 tables: names; None: those of the cursor's pull, else all, also ones made later.
                 follow: wait for more instead of ending when all is told that had changed.
                 timeout: with `follow`, seconds without a change after which it ends; None: never.
        Raises:  CursorError for a cursor that cannot be answered: of another store or other
                 servers, older than what is known of removals, or ahead of a store that lost its
                 tail in a crash; BadInputError, TableNotFoundError, CorruptionError naming a row
                 that cannot be read, UnavailableError, DeadlineError (connect's timeout a call).
        """
        _check_timeout(timeout)
        pull = Pull(self._catalog, since, tables)
        told_s, told = time.monotonic(), 0
        while True:
            yield Run(pull.step())
            if pull.told != told:
                told_s, told = time.monotonic(), pull.told
            if pull.is_complete and not follow:
                return
            if pull.is_idle:
                if follow and timeout is not None and time.monotonic() - told_s >= timeout:
                    return
                yield Pause(_PAUSE_S)
