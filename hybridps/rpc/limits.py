"""What one server lets its peers take: bytes, calls, connections, and time."""

from dataclasses import dataclass

# Unsent bytes above which a socket asks us to wait. Small enough that what plain asyncio copies
# when the socket is full stays in cache.
WRITE_HIGH_BYTES = 256 << 10
# Calls of one connection that may run or wait; with small frames this bounds their memory.
CALLS_MAX = 256
# Replies up to this size do not stand in line for the budget: they are bounded by CALLS_MAX, and
# should not wait for what somebody else does not read.
SMALL_REPLY_BYTES = 64 << 10


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    `inline_cost_bytes`: a lookup that moves no more is tried on the loop, since a hop to a thread
    costs more.
    """

    frame_bytes: int
    keys: int
    connections: int
    inflight_bytes: int
    # Pushes that come in parts, all connections together: what they hold until they are whole.
    push_bytes: int = 1 << 30
    unsent_bytes: int = 64 << 20
    inline_cost_bytes: int = 64 << 10
    login_s: float = 60.0
    frame_s: float = 30.0
    unread_s: float = 30.0
    idle_s: float = 3600.0
    # Instead of frame_s and unread_s while somebody waits for bytes that this connection holds.
    pressed_s: float = 1.0
