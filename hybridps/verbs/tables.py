"""`tables` and `drop_table`: which tables there are, and the end of one."""

from dataclasses import dataclass
from typing import Any

from hybridps.errors import TableNotFoundError
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import Catalog, Handle, StoreFace, TableT, resolve
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order


@dataclass(frozen=True, slots=True)
class ListTables(Cold[list[str]]):
    """Names of all tables of a server."""

    VERB = "tables"
    ORDER = Order.READ
    LANE = Lane.LOOKS
    RIGHT = Right.READ

    def run(self, site: Site) -> list[str]:
        """From the catalog."""
        return site.store.tables()

    @classmethod
    def answer(cls, results: Any, value: list[str]) -> None:
        """The names."""
        results.names = value

    @classmethod
    def result(cls, results: Any) -> list[str]:
        """As above."""
        return list(results.names)


@dataclass(frozen=True, slots=True)
class DropTable(Cold[None]):
    """A table goes, with all its rows."""

    VERB = "drop_table"
    ORDER = Order.PUSH
    LANE = Lane.ORDERS
    RIGHT = Right.ADMIN

    name: str

    def run(self, site: Site) -> None:
        """Writes the manifest."""
        site.store.drop_table(self.name)


def open_table(catalog: Catalog, name: object) -> Steps[Handle]:
    """A handle to a table that exists."""
    catalog.handle(name)
    handle = Handle(str(name))
    yield from resolve(catalog, handle)
    catalog.remember(handle)
    return handle


def list_tables(catalog: Catalog) -> Steps[list[str]]:
    """Names of all tables, sorted."""
    names: list[list[str]] = yield catalog.everywhere(ListTables())
    return sorted(set().union(*names))


def contains(catalog: Catalog, name: str) -> Steps[bool]:
    """Whether every server has a table of that name."""
    names: list[list[str]] = yield catalog.everywhere(ListTables())
    return all(name in part for part in names)


def drop_table(catalog: Catalog, name: object, missing_ok: bool) -> Steps[None]:
    """Drops a table on every server; one that a cut-off create left on some is dropped there."""
    text = catalog.handle(name).name
    catalog.forget(text)
    missing: list[TableNotFoundError] = []
    for addressed in catalog.everywhere(DropTable(text)):
        try:
            yield [addressed]
        except TableNotFoundError as error:
            missing.append(error)
    if len(missing) == catalog.shards and not missing_ok:
        raise missing[0]


class TablesOfStore(StoreFace[TableT]):
    """`ParameterServer.tables` and `drop_table`."""

    @verb
    def tables(self, *, timeout: float | None = None) -> Run[list[str]]:
        """Names of all tables, sorted."""
        return Run(list_tables(self._catalog), timeout)

    @verb
    def drop_table(
        self, name: str, *, missing_ok: bool = False, timeout: float | None = None
    ) -> Run[None]:
        """Drops a table and all its rows. Raises TableNotFoundError when absent, unless
        `missing_ok`.
        """
        return Run(drop_table(self._catalog, name, missing_ok), timeout)
