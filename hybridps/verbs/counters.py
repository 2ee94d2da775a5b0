"""`stats`: what a table, or a store, has counted since it was opened."""

from dataclasses import asdict, dataclass
from typing import Any

from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import (
    Catalog,
    Handle,
    StoreFace,
    TableFace,
    TableT,
    on_each,
    summed,
)
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order

Counters = dict[str, int]


@dataclass(frozen=True, slots=True)
class _Counted(Cold[Counters]):
    """Counters by name."""

    ORDER = Order.READ
    LANE = Lane.LOOKS
    RIGHT = Right.READ

    @classmethod
    def answer(cls, results: Any, value: Counters) -> None:
        """Name by name."""
        filled = results.init("counters", len(value))
        for counter, (name, count) in zip(filled, value.items(), strict=True):
            counter.name = name
            counter.value = count

    @classmethod
    def result(cls, results: Any) -> Counters:
        """As above."""
        return {str(counter.name): counter.value for counter in results.counters}


@dataclass(frozen=True, slots=True)
class TableStats(_Counted):
    """Counters of one table."""

    VERB = "table_stats"

    table: int

    @classmethod
    def spoken(cls) -> str:
        """`Table.stats`."""
        return "stats"

    def run(self, site: Site) -> Counters:
        """From memory."""
        return site.store.table_stats(self.table)


@dataclass(frozen=True, slots=True)
class Stats(_Counted):
    """Counters of a server's store."""

    VERB = "stats"

    def run(self, site: Site) -> Counters:
        """From memory."""
        return site.store.stats() | asdict(site.standing())


def table_stats(catalog: Catalog, handle: Handle) -> Steps[Counters]:
    """Counters of a table, summed over the servers."""
    return summed((yield from on_each(catalog, handle, TableStats)))


def stats(catalog: Catalog) -> Steps[Counters]:
    """Counters of all tables, summed over the servers."""
    replies = yield catalog.everywhere(Stats())
    # Every table is on every server, and who reads one of them meets the one that is most behind.
    largest = ("tables", "role", "staleness_ms")
    return summed(replies) | {n: max(reply.get(n, 0) for reply in replies) for n in largest}


class CountersOfTable(TableFace):
    """`Table.stats`."""

    @verb
    def stats(self, *, timeout: float | None = None) -> Run[Counters]:
        """Counters since open, summed over the servers."""
        return self._run(table_stats(self._catalog, self._handle), timeout)


class CountersOfStore(StoreFace[TableT]):
    """`ParameterServer.stats`."""

    @verb
    def stats(self, *, timeout: float | None = None) -> Run[Counters]:
        """Counters of all tables, summed over the servers, and tables and limits.

        Of replicas role is 1, staleness_ms how far the last of them is behind, and followed_rows
        the rows that they took over.
        """
        return Run(stats(self._catalog), timeout)
