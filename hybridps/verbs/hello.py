"""`hello`: who a connection speaks for, and what its server is. No user calls it: every connection
begins with it, and the compiled side of a client writes it.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from hybridps import _core
from hybridps.errors import BadInputError
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, ServerInfo, Site
from hybridps.verbs.kinds import Lane, Order

# What a server knows that tells no features: it is older than the list of them.
FIRST_FEATURES: Final = frozenset(
    (
        *("lookup", "lookup_or_insert", "apply_gradients", "hello", "prefetch", "assign", "remove"),
        *("create_table", "table", "tables", "drop_table", "set_learning_rate", "alter"),
        *("size", "keys", "table_stats", "stats", "flush"),
    )
)
# The field `dtype` of verbs with rows or gradients.
WIRE_DTYPE: Final = "wire_dtype"
# The fields `workers` and `rank` of hello.
SYNC_WORKERS: Final = "sync_workers"
# Those of specs and of `alter`.
ADMISSION: Final = "admission"
EXPIRY: Final = "expiry"


@dataclass(frozen=True, slots=True)
class Hello(Cold[ServerInfo]):
    """Names the session of the connection's pushes."""

    VERB = "hello"
    # The pushes behind it are of this session.
    ORDER = Order.PUSH
    LANE = Lane.LOOKS
    RIGHT = Right.READ

    session: int
    client_id: str
    # Of clients that push together: how many, and which of them this is. 0: it pushes alone.
    workers: int = 0
    rank: int = 0

    def __post_init__(self) -> None:
        if self.session in (0, _core.WORKERS_SESSION):
            raise BadInputError(f"session is {self.session}; give a random number above 0")

    @property
    def worker(self) -> tuple[int, int] | None:
        """How many push together, and which of them this is; None: it pushes alone."""
        return (self.workers, self.rank) if self.workers else None

    def run(self, site: Site) -> ServerInfo:
        """The store lets the session in, or takes it over from an older one."""
        last_push = site.store.attach(self.session, self.client_id)
        last_round = site.store.attach(_core.WORKERS_SESSION, "") if self.workers else 0
        return replace(site.info, last_push=last_push, last_round=last_round)

    @classmethod
    def answer(cls, results: Any, value: ServerInfo) -> None:
        """The server's limits, what it knows, and the last push."""
        server = results.init("server")
        server.version = value.version
        server.shard, server.shards = value.shard, value.shards
        server.lastPush, server.lastRound = value.last_push, value.last_round
        server.frameLimit, server.keysLimit = value.frame_limit, value.keys_limit
        server.features = sorted(value.features)

    @classmethod
    def result(cls, results: Any) -> ServerInfo:
        """As above."""
        told = results.server
        return ServerInfo(
            version=told.version,
            shard=told.shard,
            shards=told.shards,
            frame_limit=told.frameLimit,
            keys_limit=told.keysLimit,
            features=frozenset(told.features) or FIRST_FEATURES,
            last_push=told.lastPush,
            last_round=told.lastRound,
        )
