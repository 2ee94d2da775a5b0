"""The asyncio client: the verbs of `blocking`, awaitable, from one event loop."""

import asyncio
import concurrent.futures
import warnings
from collections.abc import AsyncIterator, Awaitable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, overload

from numpy.typing import ArrayLike

from hybridps.client import verbs
from hybridps.client.batches import RowsLike
from hybridps.client.blocking import check_mapping, split_counts, split_pairs, warn_of
from hybridps.client.calls import Found, Keys, Rows
from hybridps.client.local import LocalTransport
from hybridps.client.retry import check_timeout
from hybridps.client.verbs import KEEP, Addressed, Catalog, Handle, Keep, Steps
from hybridps.errors import DeadlineError, UnavailableError
from hybridps.keys import KeysLike
from hybridps.types import TableSpec

T = TypeVar("T")


class Transport(Protocol):
    """What moves calls to the servers: see `streams`."""

    @property
    def shards(self) -> int:
        """How many servers share the keys."""

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
        self.catalog = Catalog(transport.shards)
        self.url = url

    async def run(self, steps: Steps[T], timeout: float | None = None) -> T:
        """Runs a verb to its result."""
        try:
            addressed = next(steps)
            while True:
                try:
                    replies = await self.transport.perform(addressed, timeout)
                except Exception as error:  # noqa: BLE001 - the verb decides what to do with it
                    addressed = steps.throw(error)
                else:
                    addressed = steps.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def run_by_name(
        self, verb: Any, names: Sequence[str], *args: Any, timeout: float | None
    ) -> dict[str, Any]:
        """Runs a verb of several tables; its results by name."""
        results = await self.run(verbs.by_name(self.catalog, names, verb, *args), timeout)
        return dict(zip(names, results or (), strict=False))

    async def run_text(
        self, verb: Any, names: Sequence[str], *args: Any, timeout: float | None
    ) -> str | None:
        """As `run_by_name`, for a verb whose result is what to warn of."""
        text: str | None = await self.run(verbs.by_name(self.catalog, names, verb, *args), timeout)
        return text


class Table:
    """A table of a `ParameterServer`, found at its first verb; see `hybridps.Table`."""

    def __init__(self, driver: Driver, handle: Handle) -> None:
        self._driver = driver
        self._catalog = driver.catalog
        self._handle = handle

    def __repr__(self) -> str:
        return f"<hybridps table {self.name!r} at {self._driver.url}>"

    async def _run(self, steps: Steps[T], timeout: float | None = None) -> T:
        return await self._driver.run(verbs.on_handle(self._handle, steps), timeout)

    @property
    def name(self) -> str:
        """The table's name."""
        return self._handle.name

    @property
    def spec(self) -> Awaitable[TableSpec]:
        """The stored spec: `await table.spec`."""
        return self._run(verbs.spec_of(self._catalog, self._handle))

    @overload
    async def lookup(
        self, keys: KeysLike, *, return_found: Literal[False] = False, timeout: float | None = None
    ) -> Rows: ...
    @overload
    async def lookup(
        self, keys: KeysLike, *, return_found: Literal[True], timeout: float | None = None
    ) -> tuple[Rows, Found]: ...
    async def lookup(
        self, keys: KeysLike, *, return_found: bool = False, timeout: float | None = None
    ) -> Rows | tuple[Rows, Found]:
        """See `hybridps.Table.lookup`."""
        catalog = self._catalog
        steps = verbs.lookup(catalog, [self._handle], [keys], return_found)
        (result,) = await self._run(steps, timeout)
        rows: Rows | tuple[Rows, Found] = result
        return rows

    async def lookup_or_insert(
        self, keys: KeysLike, counts: ArrayLike | None = None, *, timeout: float | None = None
    ) -> Rows:
        """See `hybridps.Table.lookup_or_insert`."""
        catalog = self._catalog
        steps = verbs.lookup_or_insert(catalog, [self._handle], [keys], [counts])
        (rows,) = await self._run(steps, timeout)
        return rows

    async def apply_gradients(
        self,
        keys: KeysLike,
        gradients: RowsLike,
        step: int | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """See `hybridps.Table.apply_gradients`."""
        catalog = self._catalog
        steps = verbs.apply_gradients(catalog, [self._handle], [keys], [gradients], step)
        warn_of(await self._run(steps, timeout))

    async def assign(self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None) -> None:
        """See `hybridps.Table.assign`."""
        await self._run(verbs.assign(self._catalog, self._handle, keys, rows), timeout)

    async def remove(self, keys: KeysLike, *, timeout: float | None = None) -> int:
        """See `hybridps.Table.remove`."""
        return await self._run(verbs.remove(self._catalog, self._handle, keys), timeout)

    async def set_learning_rate(
        self, learning_rate: float, *, timeout: float | None = None
    ) -> None:
        """See `hybridps.Table.set_learning_rate`."""
        steps = verbs.set_learning_rate(self._catalog, self._handle, learning_rate)
        await self._run(steps, timeout)

    async def alter(
        self,
        *,
        learning_rate: float | Keep = KEEP,
        dram: int | str | Keep | None = KEEP,
        nvme: int | str | Keep | None = KEEP,
        expiry: Keep | None = KEEP,
        admission: Keep | None = KEEP,
        timeout: float | None = None,
    ) -> None:
        """See `hybridps.Table.alter`."""
        later = {"expiry": expiry, "admission": admission}
        steps = verbs.alter(self._catalog, self._handle, learning_rate, dram, nvme, later)
        await self._run(steps, timeout)

    async def size(self, *, timeout: float | None = None) -> int:
        """Rows in all tiers."""
        return await self._run(verbs.size(self._catalog, self._handle), timeout)

    async def keys(self, *, timeout: float | None = None) -> AsyncIterator[Keys]:
        """See `hybridps.Table.keys`."""
        catalog, shard, bucket = self._catalog, 0, 0
        while shard < catalog.shards:
            steps = verbs.keys_page(catalog, self._handle, shard, bucket)
            page, shard, bucket = await self._run(steps, timeout)
            if page.size:
                yield page

    async def stats(self, *, timeout: float | None = None) -> dict[str, int]:
        """See `hybridps.Table.stats`."""
        return await self._run(verbs.table_stats(self._catalog, self._handle), timeout)


class ParameterServer:
    """Tables on servers, or in this process; made by `hybridps.aio.connect`. Also an async context
    manager. Bound to the event loop that made it.
    """

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

    async def create_table(self, spec: TableSpec, *, timeout: float | None = None) -> Table:
        """See `hybridps.ParameterServer.create_table`."""
        handle, differences = await self._driver.run(
            verbs.create_table(self._catalog, spec), timeout
        )
        for text in differences:
            warnings.warn(text, UserWarning, stacklevel=2)
        return Table(self._driver, handle)

    def table(self, name: str) -> Table:
        """The table of that name; not awaited: an absent one raises at its first verb."""
        return Table(self._driver, Handle(self._catalog.handle(name).name))

    async def tables(self, *, timeout: float | None = None) -> list[str]:
        """Names of all tables, sorted."""
        return await self._driver.run(verbs.list_tables(self._catalog), timeout)

    async def drop_table(
        self, name: str, *, missing_ok: bool = False, timeout: float | None = None
    ) -> None:
        """See `hybridps.ParameterServer.drop_table`."""
        await self._driver.run(verbs.drop_table(self._catalog, name, missing_ok), timeout)

    async def lookup(
        self,
        batches: Mapping[str, KeysLike],
        *,
        return_found: bool = False,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """See `hybridps.ParameterServer.lookup`."""
        check_mapping(batches, "lookup")
        names, keys = list(batches), list(batches.values())
        args = verbs.lookup, names, keys, return_found
        return await self._driver.run_by_name(*args, timeout=timeout)

    async def lookup_or_insert(
        self,
        batches: Mapping[str, KeysLike],
        counts: Mapping[str, ArrayLike] | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, Rows]:
        """See `hybridps.ParameterServer.lookup_or_insert`."""
        check_mapping(batches, "lookup_or_insert")
        names, keys = list(batches), list(batches.values())
        per_table = split_counts(names, counts)
        args = verbs.lookup_or_insert, names, keys, per_table
        return await self._driver.run_by_name(*args, timeout=timeout)

    async def apply_gradients(
        self,
        batches: Mapping[str, tuple[KeysLike, RowsLike]],
        step: int | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """See `hybridps.ParameterServer.apply_gradients`."""
        check_mapping(batches, "apply_gradients")
        keys, gradients = split_pairs(batches)
        args = verbs.apply_gradients, list(batches), keys, gradients, step
        warn_of(await self._driver.run_text(*args, timeout=timeout))

    async def prefetch(
        self, batches: Mapping[str, KeysLike], *, timeout: float | None = None
    ) -> None:
        """See `hybridps.ParameterServer.prefetch`."""
        check_mapping(batches, "prefetch")
        names, keys = list(batches), list(batches.values())
        await self._driver.run_by_name(verbs.prefetch, names, keys, timeout=timeout)

    async def stats(self, *, timeout: float | None = None) -> dict[str, int]:
        """See `hybridps.ParameterServer.stats`."""
        return await self._driver.run(verbs.stats(self._catalog), timeout)

    async def flush(self, *, timeout: float | None = None) -> None:
        """Returns when all that was acknowledged before is on the device."""
        await self._driver.run(verbs.flush(self._catalog), timeout)

    async def close(self) -> None:
        """See `hybridps.ParameterServer.close`."""
        await self._driver.transport.close()


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
