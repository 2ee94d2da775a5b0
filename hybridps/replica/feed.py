"""What a replica is told: every page, also one with nothing in it, and every table that comes or
goes. Where a cursor is not answered any more the copy is made anew, over the old one.
"""

import time
from dataclasses import dataclass, replace

from hybridps.errors import CursorError
from hybridps.verbs.calls import Keys, Rows
from hybridps.verbs.changes import Now, NowOf, Page
from hybridps.verbs.face import Steps
from hybridps.verbs.position import Position, Progress, Shard
from hybridps.verbs.pull import Walked
from hybridps.verbs.staleness import Staleness


@dataclass(frozen=True, slots=True)
class TableNews:
    """A table was made, or is gone: whatever is here of that name goes."""

    table: str
    is_there: bool
    # Once it is applied.
    position: Position


@dataclass(frozen=True, slots=True)
class PageNews:
    """A page of what changed in a table."""

    table: str
    # It is all that there is in these cells; None: it is what changed.
    cells: tuple[int, int] | None
    removed: Keys
    keys: Keys
    rows: Rows
    position: Position


News = TableNews | PageNews


class Feed(Walked[News]):
    """Changes on their way to a replica."""

    def step(self) -> Steps[News | None]:
        """As `Walked.step`; a cursor that is refused is no error."""
        try:
            return (yield from super().step())
        except CursorError:
            yield from self._begin_anew()
            return None

    # What the servers had when they were asked last is of this moment: they may be behind too.
    as_of = 0.0

    @property
    def is_through(self) -> bool:
        """All that had changed at that moment was told."""
        return self._has_looked and not self._ready and not self._due()

    def _look(self) -> Steps[None]:
        asked_s = time.time()
        behind_ms = yield self._catalog.everywhere(Staleness())
        yield from super()._look()
        self.as_of = asked_s - max(behind_ms) / 1000

    def resume(self, position: Position) -> None:
        """Goes on from a position that was kept."""
        self.position = position
        self._is_new = False

    def _check_names(self, nows: object) -> None:
        """A table that is not there yet may come."""

    def _begin_anew(self) -> Steps[None]:
        """All rows are told once more; of a store that is another one, as new tables."""
        nows: list[Now] = yield self._catalog.everywhere(NowOf())
        shards = []
        for number, (shard, now) in enumerate(zip(self.position.shards, nows, strict=True)):
            first = self._cells(number)[0]
            tables = {
                name: Progress(table.id, None, now.sequence, first)
                for name, table in shard.tables.items()
            }
            is_same = shard.store == now.store
            shards.append(replace(shard, tables=tables) if is_same else Shard(now.store, {}))
        self.position = replace(self.position, shards=tuple(shards))

    def _note_table(self, name: str, *, is_there: bool) -> None:
        self._ready.append(TableNews(name, is_there, self.position))

    def _note_page(
        self, shard: int, name: str, progress: Progress, page: Page, before: Position
    ) -> None:
        del shard, before
        cells = (progress.at, page.next) if progress.since is None else None
        rows = page.rows.reshape(len(page.keys), self._dims[name])
        told = PageNews(name, cells, page.removed, page.keys, rows, self.position)
        self._ready.append(told)
