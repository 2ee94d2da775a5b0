"""`hello`: who a connection speaks for, and what its server is. No user calls it: every connection
begins with it, and the compiled side of a client writes it.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

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

    def __post_init__(self) -> None:
        if self.session == 0:
            raise BadInputError("session is 0; give a random number above 0")

    def run(self, site: Site) -> ServerInfo:
        """The store lets the session in, or takes it over from an older one."""
        return replace(site.info, last_push=site.store.attach(self.session, self.client_id))

    @classmethod
    def answer(cls, results: Any, value: ServerInfo) -> None:
        """The server's limits, what it knows, and the last push."""
        server = results.init("server")
        server.version = value.version
        server.shard, server.shards = value.shard, value.shards
        server.lastPush = value.last_push
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
        )
