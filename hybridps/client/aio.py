"""The asyncio client: all verbs of `hybridps.verbs`, awaitable, from one event loop."""

import asyncio
import concurrent.futures
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from hybridps.client.local import LocalTransport
from hybridps.client.retry import check_timeout
from hybridps.errors import DeadlineError, UnavailableError
from hybridps.verbs import StoreVerbs, TableVerbs
from hybridps.verbs.catalog import Catalog, Handle
from hybridps.verbs.face import Addressed, Awaited, Run
from hybridps.verbs.router import ReadLimits

T = TypeVar("T")


class Transport(Protocol):
    """What moves calls to the servers: see `streams`."""

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

    async def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order; raises the first error when all have ended."""

    async def close(self) -> None:
        """Ends the connections; a second call does nothing."""


class ThreadedTransport:
    """A store in this process, called off the event loop.

    One thread: calls run in the order in which they were made. The engine has threads of its own.
    """

    def __init__(self, transport: LocalTransport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="hybridps")
        self.shards = transport.shards
        self.limits = transport.limits
        self.wire_dtype = transport.wire_dtype
        self.is_worker = transport.is_worker
        self._is_closed = False

    async def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order."""
        seconds = check_timeout(timeout, self._timeout)
        if self._is_closed:
            raise UnavailableError("this client is closed; connect again")
        work = self._thread.submit(self._transport.perform, addressed, None)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), seconds)
        except TimeoutError:
            raise DeadlineError(
                f"the call did not end within {seconds:g} s; give more timeout= or fewer keys"
                " (what it changes may still happen)"
            ) from None

    async def close(self) -> None:
        """Flushes and closes the store."""
        self._is_closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._thread.shutdown)
        await loop.run_in_executor(None, self._transport.close)


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

    async def finish(self, run: Run[T]) -> T:
        """Runs a verb to its result."""
        steps = run.steps
        try:
            addressed = next(steps)
            while True:
                try:
                    replies = await self.transport.perform(addressed, run.timeout)
                except Exception as error:  # noqa: BLE001 - the verb decides what to do with it
                    addressed = steps.throw(error)
                else:
                    addressed = steps.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result

    @staticmethod
    async def pause(seconds: float) -> None:
        """Does nothing for so long."""
        await asyncio.sleep(seconds)


class Table(Awaited, TableVerbs):
    """A table of a `ParameterServer`, found at its first verb. It stays with its table: after a
    drop its verbs raise TableNotFoundError, also when a new table took the name.

    Every verb takes `timeout`, seconds, for this call alone; None is that of `connect`.
    """

    _driver: Driver

    def __init__(self, driver: Driver, handle: Handle) -> None:
        self._driver = driver
        self._catalog = driver.catalog
        self._handle = handle

    def __repr__(self) -> str:
        return f"<hybridps table {self.name!r} at {self._driver.url}>"

    @property
    def name(self) -> str:
        """The table's name."""
        return self._handle.name


class ParameterServer(Awaited, StoreVerbs[Table]):
    """Tables on servers, or in this process; made by `hybridps.aio.connect`. Also an async context
    manager. Bound to the event loop that made it.
    """

    _driver: Driver

    def __init__(self, transport: Transport, url: str) -> None:
        self._driver = Driver(transport, url)
        self._catalog = self._driver.catalog
        self.url = url

    def __repr__(self) -> str:
        return f"<hybridps.aio.ParameterServer {self.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def table(self, name: str) -> Table:
        """The table of that name; not awaited: an absent one raises at its first verb."""
        return self._table(Handle(self._catalog.handle(name).name))

    async def close(self) -> None:
        """Ends the connections; a store in this process is flushed and closed. Idempotent."""
        await self._driver.transport.close()

    def _table(self, handle: Handle) -> Table:
        return Table(self._driver, handle)


class Connecting:
    """What `hybridps.aio.connect` returns: `await` it, or use it in `async with`."""

    def __init__(self, opening: Any) -> None:
        self._opening = opening
        self._ps: ParameterServer | None = None

    def __await__(self) -> Generator[Any, None, ParameterServer]:
        ps: ParameterServer = yield from self._opening().__await__()
        return ps

    async def __aenter__(self) -> ParameterServer:
        self._ps = await self
        return self._ps

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ps is not None:
            await self._ps.close()
