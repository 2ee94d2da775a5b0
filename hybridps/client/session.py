"""A client's life: who it is, the numbers of its pushes, and a line to each server. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from hybridps.client.line import Line
from hybridps.client.urls import Address
from hybridps.security.credentials import Credentials
from hybridps.verbs.router import ReadLimits


class Identity:
    """Who this process is to its servers."""

    def __init__(self, client_id: str | None, token: str = "", wire_dtype: str = "float32") -> None:
        self.client_id = client_id or ""
        self.token = token
        # How rows and gradients travel.
        self.wire_dtype = wire_dtype
        self.session = secrets.randbits(63) + 1

    def renew(self) -> None:
        """A forked child is a client of its own; it does not take over from its parent."""
        self.client_id = ""
        self.session = secrets.randbits(63) + 1


class Session:
    """One session over all servers. Pushes are numbered for all of them together: a number names
    one call of the client, and each server sees those of its own calls grow.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        client_id: str | None,
        credentials: Credentials,
        wire_dtype: str = "float32",
    ) -> None:
        self._identity = Identity(client_id, credentials.token, wire_dtype)
        self._last_push = 0
        self.lines = [
            Line(address, shard, len(addresses), self._identity)
            for shard, address in enumerate(addresses)
        ]

    def next_push(self) -> int:
        """The number of a new push. Who asks must submit it before anyone asks again."""
        self._last_push += 1
        return self._last_push

    def limits(self) -> ReadLimits:
        """Of one read: what every server takes that was met."""
        limits = self.lines[0].read_limits
        for line in self.lines[1:]:
            limits = limits.within(line.read_limits.keys, line.read_limits.frame_bytes)
        return limits

    def renew(self) -> None:
        """In a forked child: a session of its own, without a connection."""
        self._identity.renew()
        self._last_push = 0
        for line in self.lines:
            line.forget_all()
