"""The verbs of the schema that are not answered in Rust: one async method each, the same names.

A method reads its params, calls the engine on a worker, and fills the results. It trusts nothing
it reads: lengths, table ids and limits are checked here or in the engine. Errors leave as classes
of `hybridps.errors`; what is not one of them is a bug, logged with its traceback and told to the
client in one line without it. Never here: sockets, order of calls (the connection keeps it).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridps import _core
from hybridps.config import ServerConfig
from hybridps.errors import BadInputError, HybridPSError, TableNotFoundError
from hybridps.rpc import schemas
from hybridps.server.logs import Logger
from hybridps.server.metrics import Metrics, Snapshot
from hybridps.server.specs import camel_case, fill_spec, snake_case, spec_json, strict_json
from hybridps.server.workers import Workers

# Looking ahead further than this only evicts what was fetched before; later asks are dropped.
PREFETCHES_MAX = 8

log = Logger("hybridps.server")


class Caller(Protocol):
    """The connection that a call came by: `session` is set by hello and names its pushes."""

    session: int


class Service:
    """All verbs of one store."""

    def __init__(
        self, store: _core.Store, config: ServerConfig, workers: Workers, metrics: Metrics
    ) -> None:
        self._store = store
        self._config = config
        self._workers = workers
        self._metrics = metrics
        self._background: set[asyncio.Task[None]] = set()

    async def call(self, caller: Caller, verb: str, params: Any) -> bytes:
        """The results message of one call, whose params message is `params` (a buffer).

        Raises: HybridPSError; its class and text are what the client gets.
        """
        started = time.perf_counter()
        code = "ok"
        try:
            return await self._answer(caller, verb, params)
        except HybridPSError as error:
            code = type(error).__name__
            raise
        except Exception:
            code = "HybridPSError"
            log.exception("call failed", verb=verb)
            raise HybridPSError(
                f"{snake_case(verb)} failed inside the server; its log has the details"
            ) from None
        finally:
            self._metrics.observe(verb, code, time.perf_counter() - started)

    async def snapshot(self) -> Snapshot:
        """All counters of the store, for metrics and the status page."""
        return await self._workers.run(self._read_counters)

    async def _answer(self, caller: Caller, verb: str, params: Any) -> bytes:
        method: Callable[..., Awaitable[None]] | None = _METHODS.get(verb)
        if method is None:
            raise BadInputError(f"this server has no verb {verb!r}; use a newer server")
        results = schemas.new_results(verb)
        with schemas.read_params(verb, params) as reader:
            await method(self, caller, reader, results)
        message: bytes = results.to_bytes()
        return message

    async def hello(self, caller: Caller, params: Any, results: Any) -> None:
        """Names the session of this connection's pushes, and tells the server's limits."""
        session = params.session
        if session == 0:
            raise BadInputError("session is 0; give a random number above 0")
        last_push = await self._workers.run(self._store.attach, session, params.clientId)
        caller.session = session
        server = results.init("server")
        server.version = _core.__version__
        server.shard, server.shards = self._config.shard
        server.lastPush = last_push
        server.frameLimit = self._config.frame_limit_bytes
        server.keysLimit = self._config.keys_limit

    async def prefetch(self, _caller: Caller, params: Any, _results: Any) -> None:
        """Starts to warm the keys and returns; beyond a few at a time, asks are dropped."""
        batches = [(batch.table, self._keys(batch).copy()) for batch in params.tables]
        self._check_count(sum(len(keys) for _, keys in batches))
        if batches and len(self._background) < PREFETCHES_MAX:
            task = asyncio.create_task(self._prefetch(batches))
            self._background.add(task)  # The loop itself keeps only weak references.
            task.add_done_callback(self._background.discard)

    async def assign(self, caller: Caller, params: Any, _results: Any) -> None:
        """Sets rows of the table."""
        keys = self._keys(params)
        # The engine knows the table's dim and checks the count of numbers, whatever their shape.
        rows = _array(params, "rows", np.dtype("<f4")).reshape(1, -1)
        number = _push_number(caller, params.push)
        await self._workers.run(
            self._store.assign, caller.session, number, params.table, keys, rows
        )

    async def remove(self, caller: Caller, params: Any, results: Any) -> None:
        """Drops rows with their slots and statistics."""
        keys = self._keys(params)
        number = _push_number(caller, params.push)
        results.removed = await self._workers.run(
            self._store.remove, caller.session, number, params.table, keys
        )

    async def create_table(self, _caller: Caller, params: Any, results: Any) -> None:
        """Creates the table, or opens an equal one."""
        spec = spec_json(params.spec)
        number, stored, warnings = await self._workers.run(self._store.create_table, spec)
        info = results.init("table")
        info.id = number
        info.warnings = warnings
        fill_spec(info.init("spec"), stored)

    async def table(self, _caller: Caller, params: Any, results: Any) -> None:
        """Finds a table by name."""
        number, stored = await self._workers.run(self._store.table, params.name)
        info = results.init("table")
        info.id = number
        fill_spec(info.init("spec"), stored)

    async def tables(self, _caller: Caller, _params: Any, results: Any) -> None:
        """Names of all tables."""
        results.names = await self._workers.run(self._store.tables)

    async def drop_table(self, _caller: Caller, params: Any, _results: Any) -> None:
        """Drops a table with its rows."""
        await self._workers.run(self._store.drop_table, params.name)

    async def set_learning_rate(self, _caller: Caller, params: Any, _results: Any) -> None:
        """Sets the rate of later pushes."""
        change = strict_json({"learning_rate": params.learningRate})
        await self._workers.run(self._store.alter, params.table, change)

    async def alter(self, _caller: Caller, params: Any, _results: Any) -> None:
        """Changes live settings; what the change keeps stays."""
        change: dict[str, Any] = {}
        if params.change.learningRate.which() == "value":
            change["learning_rate"] = params.change.learningRate.value
        for name in ("dram", "nvme"):
            cap = getattr(params.change, name)
            if cap.which() == "value":
                change[name] = cap.value or None
        await self._workers.run(self._store.alter, params.table, strict_json(change))

    async def size(self, _caller: Caller, params: Any, results: Any) -> None:
        """Rows of the table."""
        results.keys = await self._workers.run(self._store.size, params.table)

    async def keys(self, _caller: Caller, params: Any, results: Any) -> None:
        """Keys of some buckets, and where to go on."""
        keys, following = await self._workers.run(self._store.keys, params.table, params.bucket)
        results.keys = keys.astype("<u8", copy=False).tobytes()
        results.next = following

    async def table_stats(self, _caller: Caller, params: Any, results: Any) -> None:
        """Counters of one table."""
        _fill_counters(results, await self._workers.run(self._store.table_stats, params.table))

    async def stats(self, _caller: Caller, _params: Any, results: Any) -> None:
        """Counters of the store."""
        _fill_counters(results, await self._workers.run(self._store.stats))

    async def flush(self, _caller: Caller, _params: Any, _results: Any) -> None:
        """Returns when all that was acknowledged before is on the device."""
        await self._workers.run(self._store.flush)

    async def _prefetch(self, batches: list[tuple[int, NDArray[np.uint64]]]) -> None:
        try:
            await self._workers.run(self._store.prefetch, batches)
        except HybridPSError as error:
            # The caller has its answer already, and warming is only a hint.
            log.warning("prefetch failed", error=str(error))

    def _keys(self, params: Any) -> NDArray[np.uint64]:
        """The keys of a batch, a view of the message; its length and count are checked."""
        keys = _array(params, "keys", np.dtype("<u8"))
        self._check_count(len(keys))
        return keys

    def _check_count(self, keys: int) -> None:
        if keys > self._config.keys_limit:
            self._metrics.reject("keys_limit")
            raise BadInputError(
                f"the call names {keys} keys and this server takes {self._config.keys_limit} a"
                " call; split the batch, or raise keys_limit in the server's config"
            )

    def _read_counters(self) -> Snapshot:
        tables = {}
        for name in self._store.tables():
            try:
                number, _ = self._store.table(name)
                tables[name] = self._store.table_stats(number)
            except TableNotFoundError:  # Dropped since it was listed.
                continue
        return Snapshot(self._store.stats(), tables)


def _array(params: Any, field: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    data = params.get_data_as_view(field)
    if len(data) % dtype.itemsize:
        raise BadInputError(
            f"{field} holds {len(data)} bytes, not a multiple of {dtype.itemsize}; send"
            f" {dtype.itemsize} bytes each, little-endian"
        )
    return np.frombuffer(data, dtype=dtype)


def _push_number(caller: Caller, push: Any) -> int:
    if caller.session == 0:
        raise BadInputError("a push came before hello; call hello first, once a connection")
    if push.number == 0:
        raise BadInputError("push number is 0; number pushes 1, 2, 3 ... within the session")
    number: int = push.number
    return number


def _fill_counters(results: Any, counters: dict[str, int]) -> None:
    filled = results.init("counters", len(counters))
    for counter, (name, value) in zip(filled, counters.items(), strict=True):
        counter.name = name
        counter.value = value


_METHODS = {
    camel_case(name): getattr(Service, name)
    for name in (
        *("hello", "prefetch", "assign", "remove", "create_table", "table", "tables"),
        *("drop_table", "set_learning_rate", "alter", "size", "keys", "table_stats", "stats"),
        "flush",
    )
}
