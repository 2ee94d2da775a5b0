"""What all connections of one server share: the store, its workers and counters, the budgets."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hybridps import _core
from hybridps.rpc.budget import Budget
from hybridps.rpc.limits import Limits
from hybridps.rpc.rounds import Rounds
from hybridps.security.tokens import Keyring
from hybridps.verbs.kinds import Lane

if TYPE_CHECKING:
    from hybridps.rpc.connection import Connection
    from hybridps.rpc.together import Held
    from hybridps.rpc.transport import Transport

_T = TypeVar("_T")


class Service(Protocol):
    """Who answers cold verbs."""

    async def call(self, caller: Any, verb: str, params: Any, begin: Callable[[], None]) -> bytes:
        """The results message of a call. HybridPSErrors reach the peer by class and text.

        `begin` is to be called on the thread that begins with it.
        """


class Workers(Protocol):
    """Who runs engine work off the loop."""

    def run(self, lane: Lane, function: Callable[[], _T], /) -> Awaitable[_T]:
        """Runs the function on a thread of the lane."""


class Metrics(Protocol):
    """Who counts."""

    def observe(self, method: str, code: str, seconds: float, waited_s: float) -> None:
        """One answered call: seconds since its last byte came, and how many of them passed before
        the engine began with it.
        """

    def reject(self, limit: str) -> None:
        """One refusal."""


class Replica(Protocol):
    """Whom a replica follows, and what has not arrived from there."""

    @property
    def url(self) -> str:
        """The one that takes what changes anything."""

    @property
    def has_arriving(self) -> bool:
        """Whether there is a table whose rows are not all here."""

    def arriving(self, table: int) -> str | None:
        """Its name, if that one is."""

    async def bring(self, asked: Sequence[tuple[int, Any]]) -> None:
        """Brings the rows of these keys, by table. Raises: UnavailableError if it cannot."""


class Clients:
    """Connections of named clients. The newest session of a name speaks for it: those of others are
    told that they were taken over, and do nothing any more.
    """

    def __init__(self) -> None:
        self._connections: dict[str, set[Connection]] = {}

    def enter(self, connection: Connection, client_id: str) -> None:
        """A connection has said hello in this name; the store has let its session in."""
        known = self._connections.setdefault(client_id, set())
        for other in known:
            if other.session != connection.session:
                other.take_over()
        known.add(connection)

    def leave(self, connection: Connection, client_id: str) -> None:
        """A connection is lost."""
        known = self._connections.get(client_id, set())
        known.discard(connection)
        if not known:
            self._connections.pop(client_id, None)


class Host:
    """What all connections of a server share."""

    def __init__(
        self,
        store: _core.Store,
        service: Service,
        workers: Workers,
        metrics: Metrics,
        limits: Limits,
        keyring: Keyring | None = None,
        replica: Replica | None = None,
    ) -> None:
        self.store = store
        self.service = service
        self.workers = workers
        self.metrics = metrics
        self.limits = limits
        # None: whoever reaches the socket may do everything.
        self.keyring = keyring
        # None: this is none.
        self.replica = replica
        self._names: dict[int, str] = {}
        # Apart, because a call that holds its frame waits for room for its reply.
        self.frames = Budget(limits.inflight_bytes // 2)
        self.replies = Budget(limits.inflight_bytes // 2)
        self.pushes = Budget(limits.push_bytes)
        self.transports: set[Transport] = set()
        self.clients = Clients()
        # What workers push together.
        self.rounds: Rounds[Held] = Rounds()
        # Lookups to come that are not tried on the loop: others had to wait for a device.
        self.untried_lookups = 0
        self.is_draining = False

    def name_of(self, table: int | str) -> str:
        """Name of a table given by id or name. An id is never used again, so names are kept.

        Raises: TableNotFoundError for an id that no table has.
        """
        if isinstance(table, str):
            return table
        if table not in self._names:
            self._names[table] = json.loads(self.store.spec(table))["name"]
        return self._names[table]
