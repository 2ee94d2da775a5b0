"""The blocking client: all verbs of `hybridps.verbs`, and what is written like Python's own
containers. Safe to use from many threads.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from hybridps.verbs import StoreVerbs, TableVerbs
from hybridps.verbs.catalog import Catalog, Handle
from hybridps.verbs.face import Addressed, Blocking, Run
from hybridps.verbs.router import ReadLimits
from hybridps.verbs.tables import contains, open_table

T = TypeVar("T")


class Transport(Protocol):
    """What moves calls to the servers: see `local` and `remote`."""

    @property
    def shards(self) -> int:
        """How many servers share the keys."""

    def limits(self) -> ReadLimits:
        """Of one read, as far as the servers were met."""

    @property
    def wire_dtype(self) -> str:
        """How rows and gradients travel."""

    @property
    def is_worker(self) -> bool:
        """Whether what it pushes is pushed together with other workers."""

    def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order; raises the first error when all have ended."""

    def close(self) -> None:
        """Ends the connections; a second call does nothing."""


class Driver:
    """Runs verbs over a transport; shared by a client and its tables."""

    def __init__(self, transport: Transport, url: str) -> None:
        self.transport = transport
        self.catalog = Catalog(
            transport.shards,
            transport.limits,
            transport.wire_dtype,
            tells_all=transport.is_worker,
        )
        self.url = url

    def finish(self, run: Run[T]) -> T:
        """Runs a verb to its result."""
        steps = run.steps
        try:
            addressed = next(steps)
            while True:
                try:
                    replies = self.transport.perform(addressed, run.timeout)
                except Exception as error:  # noqa: BLE001 - the verb decides what to do with it
                    addressed = steps.throw(error)
                else:
                    addressed = steps.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result

    @staticmethod
    def pause(seconds: float) -> None:
        """Does nothing for so long."""
        time.sleep(seconds)


class Table(Blocking, TableVerbs):
    """A table of a `ParameterServer`. It stays with its table: after a drop its verbs raise
    TableNotFoundError, also when a new table took the name.

    Every verb takes `timeout`, seconds, for this call alone; None is that of `connect`.
    """

    _driver: Driver

    def __init__(self, driver: Driver, handle: Handle) -> None:
        self._driver = driver
        self._catalog = driver.catalog
        self._handle = handle

    def __repr__(self) -> str:
        return f"<hybridps table {self.name!r} at {self._driver.url}>"

    def __len__(self) -> int:
        return self.size()

    def __bool__(self) -> bool:
        # A handle is not empty because its table is.
        return True

    @property
    def name(self) -> str:
        """The table's name."""
        return self._handle.name


class ParameterServer(Blocking, StoreVerbs[Table]):
    """Tables on servers, or in this process; made by `hybridps.connect`. Also a context manager."""

    _driver: Driver

    def __init__(self, transport: Transport, url: str) -> None:
        self._driver = Driver(transport, url)
        self._catalog = self._driver.catalog
        self.url = url

    def __repr__(self) -> str:
        return f"<hybridps.ParameterServer {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        """`"item" in ps`: whether there is a table of that name, now."""
        return isinstance(name, str) and self._driver.finish(Run(contains(self._catalog, name)))

    def table(self, name: str, *, timeout: float | None = None) -> Table:
        """The table of that name. Raises TableNotFoundError when absent."""
        return self._table(self._driver.finish(Run(open_table(self._catalog, name), timeout)))

    def close(self) -> None:
        """Ends the connections; a store in this process is flushed and closed. Idempotent."""
        self._driver.transport.close()

    def _table(self, handle: Handle) -> Table:
        return Table(self._driver, handle)
