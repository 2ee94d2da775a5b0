"""The verbs of the schema that are not answered in Rust: one async method each, the same names.

A method reads its params, calls the engine on a worker, and fills the results. It trusts nothing
it reads: lengths, table ids and limits are checked here or in the engine. Errors leave as classes
of `hybridps.errors`; what is not one of them is a bug, logged with its traceback and told to the
client in one line without it. Never here: sockets, order of calls (the connection keeps it).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from hybridps import _core
from hybridps.config import ServerConfig
from hybridps.errors import BadInputError, HybridPSError
from hybridps.rpc import schemas
from hybridps.rpc.lanes import Lane, lane_of
from hybridps.server.logs import Logger
from hybridps.server.metrics import Metrics
from hybridps.server.specs import camel_case, fill_spec, snake_case, spec_json, strict_json
from hybridps.server.workers import Workers

log = Logger("hybridps.server")

_T = TypeVar("_T")


class Caller(Protocol):
    """The connection that a call came by."""

    def enter(self, session: int, client_id: str) -> None:
        """Names the session of its pushes, and whom it speaks for."""


@dataclass(frozen=True)
class Work:
    """One call: who asks, and how its engine work is run off the loop, in the verb's lane."""

    caller: Caller
    run: Callable[..., Awaitable[Any]]


class Service:
    """All verbs of one store."""

    def __init__(
        self, store: _core.Store, config: ServerConfig, workers: Workers, metrics: Metrics
    ) -> None:
        self._store = store
        self._config = config
        self._workers = workers
        self._metrics = metrics

    async def call(
        self, caller: Caller, verb: str, params: Any, begin: Callable[[], None]
    ) -> bytes:
        """The results message of one call, whose params message is `params` (a buffer).

        `begin` is called on the engine thread that begins with it.
        Raises: HybridPSError; its class and text are what the client gets.
        """
        method = _METHODS.get(verb)
        if method is None:
            raise BadInputError(f"this server has no verb {verb!r}; use a newer server")
        results = schemas.new_results(verb)
        work = Work(caller, partial(self._run, lane_of(verb), begin))
        try:
            with schemas.read_params(verb, params) as reader:
                await method(self, work, reader, results)
        except HybridPSError:
            raise
        except Exception:
            log.exception("call failed", verb=verb)
            raise HybridPSError(
                f"{snake_case(verb)} failed inside the server; its log has the details"
            ) from None
        message: bytes = results.to_bytes()
        return message

    async def _run(
        self, lane: Lane, begin: Callable[[], None], function: Callable[..., _T], *args: Any
    ) -> _T:
        def work() -> _T:
            begin()
            return function(*args)

        return await self._workers.run(lane, work)

    async def hello(self, work: Work, params: Any, results: Any) -> None:
        """Names the session of this connection's pushes, and tells the server's limits."""
        session = params.session
        if session == 0:
            raise BadInputError("session is 0; give a random number above 0")
        last_push = await work.run(self._store.attach, session, params.clientId)
        work.caller.enter(session, params.clientId)
        server = results.init("server")
        server.version = _core.__version__
        server.shard, server.shards = self._config.shard
        server.lastPush = last_push
        server.frameLimit = self._config.frame_limit_bytes
        server.keysLimit = self._config.keys_limit

    async def create_table(self, work: Work, params: Any, results: Any) -> None:
        """Creates the table, or opens an equal one."""
        spec = spec_json(params.spec)
        number, stored, warnings = await work.run(self._store.create_table, spec)
        info = results.init("table")
        info.id = number
        info.warnings = warnings
        fill_spec(info.init("spec"), stored)

    async def table(self, work: Work, params: Any, results: Any) -> None:
        """Finds a table by name."""
        number, stored = await work.run(self._store.table, params.name)
        info = results.init("table")
        info.id = number
        fill_spec(info.init("spec"), stored)

    async def tables(self, work: Work, _params: Any, results: Any) -> None:
        """Names of all tables."""
        results.names = await work.run(self._store.tables)

    async def drop_table(self, work: Work, params: Any, _results: Any) -> None:
        """Drops a table with its rows."""
        await work.run(self._store.drop_table, params.name)

    async def set_learning_rate(self, work: Work, params: Any, _results: Any) -> None:
        """Sets the rate of later pushes."""
        change = strict_json({"learning_rate": params.learningRate})
        await work.run(self._store.alter, params.table, change)

    async def alter(self, work: Work, params: Any, _results: Any) -> None:
        """Changes live settings; what the change keeps stays."""
        change: dict[str, Any] = {}
        if params.change.learningRate.which() == "value":
            change["learning_rate"] = params.change.learningRate.value
        for name in ("dram", "nvme"):
            cap = getattr(params.change, name)
            if cap.which() == "value":
                change[name] = cap.value or None
        await work.run(self._store.alter, params.table, strict_json(change))

    async def size(self, work: Work, params: Any, results: Any) -> None:
        """Rows of the table."""
        results.keys = await work.run(self._store.size, params.table)

    async def keys(self, work: Work, params: Any, results: Any) -> None:
        """Keys of some buckets, and where to go on."""
        keys, following = await work.run(self._store.keys, params.table, params.bucket)
        results.keys = keys.astype("<u8", copy=False).tobytes()
        results.next = following

    async def table_stats(self, work: Work, params: Any, results: Any) -> None:
        """Counters of one table."""
        _fill_counters(results, await work.run(self._store.table_stats, params.table))

    async def stats(self, work: Work, _params: Any, results: Any) -> None:
        """Counters of the store."""
        _fill_counters(results, await work.run(self._store.stats))

    async def flush(self, work: Work, _params: Any, _results: Any) -> None:
        """Returns when all that was acknowledged before is on the device."""
        await work.run(self._store.flush)


def _fill_counters(results: Any, counters: dict[str, int]) -> None:
    filled = results.init("counters", len(counters))
    for counter, (name, value) in zip(filled, counters.items(), strict=True):
        counter.name = name
        counter.value = value


_METHODS = {
    camel_case(name): getattr(Service, name)
    for name in (
        *("hello", "create_table", "table", "tables"),
        *("drop_table", "set_learning_rate", "alter", "size", "keys", "table_stats", "stats"),
        "flush",
    )
}
