"""Answers the verbs that are not answered in Rust: reads what was asked, lets it be run in its
lane, and writes what came of it. What a verb is, it says itself (`hybridps.verbs`).

It trusts nothing it reads: lengths, table ids and limits are checked by the verb or in the engine.
Errors leave as classes of `hybridps.errors`; what is not one of them is a bug, logged with its
traceback and told to the client in one line without it. Never here: sockets, order of calls (the
connection keeps it).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from hybridps import _core
from hybridps.config import ServerConfig
from hybridps.errors import BadInputError, HybridPSError
from hybridps.replica.service import Replica
from hybridps.rpc import schemas
from hybridps.security.rights import Right
from hybridps.server.logs import AUDIT, Logger
from hybridps.server.workers import Workers
from hybridps.verbs import FEATURES, VERBS
from hybridps.verbs.calls import Cold, ServerInfo, Site
from hybridps.verbs.hello import Hello

log = Logger("hybridps.server")
audit = Logger(AUDIT)


class Caller(Protocol):
    """The connection that a call came by."""

    # Where it comes from, and the name of its token.
    peer: str
    caller: str

    def enter(self, session: int, client_id: str, worker: tuple[int, int] | None, last: int) -> int:
        """Names the session of its pushes, whom it speaks for, and whom it pushes with; the last
        round of those.
        """

    def permit(self, verb: str, right: Right, tables: Iterable[int | str]) -> None:
        """Raises AuthError when its token does not allow the verb on these tables."""


class Service:
    """All verbs of one store."""

    def __init__(
        self,
        store: _core.Store,
        config: ServerConfig,
        workers: Workers,
        replica: Replica | None = None,
    ) -> None:
        self._workers = workers
        self._replica = replica
        shard, shards = config.shard
        info = ServerInfo(
            version=_core.__version__,
            shard=shard,
            shards=shards,
            frame_limit=config.frame_limit_bytes,
            keys_limit=config.keys_limit,
            features=FEATURES,
        )
        self._site = Site(store, info)
        if replica is not None:
            self._site = Site(store, info, standing=lambda: replica.standing)

    async def call(
        self, caller: Caller, verb: str, params: Any, begin: Callable[[], None]
    ) -> bytes:
        """The results message of one call, whose params message is `params` (a buffer).

        `begin` is called on the engine thread that begins with it.
        Raises: HybridPSError; its class and text are what the client gets.
        """
        kind = VERBS.get(verb)
        if kind is None or not issubclass(kind, Cold):
            raise BadInputError(f"this server has no verb {verb!r}; use a newer server")
        try:
            return await self._answer(caller, kind, params, begin)
        except HybridPSError:
            raise
        except Exception:
            log.exception("call failed", verb=verb)
            raise HybridPSError(
                f"{kind.VERB} failed inside the server; its log has the details"
            ) from None

    async def _answer(
        self, caller: Caller, kind: type[Cold[Any]], params: Any, begin: Callable[[], None]
    ) -> bytes:
        with schemas.read_params(kind.method(), params) as reader:
            call = kind.read(reader)
        if kind.RIGHT is not Right.READ:
            return await self._audited(caller, call, begin)
        caller.permit(kind.method(), kind.RIGHT, call.touches())
        return await self._run(caller, call, begin)

    async def _audited(self, caller: Caller, call: Cold[Any], begin: Callable[[], None]) -> bytes:
        """What is not only a look leaves a line in the log, refused or not."""
        verb, tables = call.method(), ", ".join(map(str, call.touches()))
        who = {"token": caller.caller, "peer": caller.peer}
        outcome = "failed"
        try:
            caller.permit(verb, call.RIGHT, call.touches())
            results = await self._run(caller, call, begin)
            outcome = "ok"
        except HybridPSError as error:
            outcome = type(error).__name__
            raise
        finally:
            audit.info("audit", verb=verb, table=tables, outcome=outcome, **who)
        return results

    async def _run(self, caller: Caller, call: Cold[Any], begin: Callable[[], None]) -> bytes:
        kind = type(call)

        def work() -> Any:
            begin()
            return call.run(self._site)

        value: Any = None if self._replica is None else await self._replica.answer(call, self._site)
        if value is None:
            value = await self._workers.run(kind.LANE, work)
        if isinstance(call, Hello):
            last = caller.enter(call.session, call.client_id, call.worker, value.last_round)
            value = replace(value, last_round=last)
        results = schemas.new_results(kind.method())
        kind.answer(results, value)
        message: bytes = results.to_bytes()
        return message
