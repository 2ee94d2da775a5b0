"""A client's life: who it is, the numbers of its pushes, and a line to each server. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from hybridps.client.line import Line
from hybridps.client.pending import Pending
from hybridps.client.retry import Deadline
from hybridps.client.urls import Address
from hybridps.client.worker import COPY, Numbers, Worker
from hybridps.errors import ConfigError
from hybridps.security.credentials import Credentials
from hybridps.verbs.calls import Call, Push, ServerInfo
from hybridps.verbs.hello import Hello
from hybridps.verbs.router import ReadLimits


class Identity:
    """Who this process is to its servers."""

    def __init__(
        self,
        client_id: str | None,
        token: str = "",
        wire_dtype: str = "float32",
        worker: Worker | None = None,
    ) -> None:
        self.client_id = client_id or ""
        self.token = token
        # How rows and gradients travel.
        self.wire_dtype = wire_dtype
        # Of several that push together; None: it pushes alone.
        self.worker = worker
        self.session = secrets.randbits(63) + 1

    def renew(self) -> None:
        """A forked child is a client of its own; it does not take over from its parent."""
        self.client_id = ""
        self.worker = self.worker and COPY
        self.session = secrets.randbits(63) + 1


class Session:
    """One session over all servers. Pushes are numbered for all of them together: a number names
    one call of the client, and each server sees those of its own calls grow. What workers push
    together is numbered by round, for all of them.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        client_id: str | None,
        credentials: Credentials,
        wire_dtype: str = "float32",
        worker: Worker | None = None,
    ) -> None:
        self._identity = Identity(client_id, credentials.token, wire_dtype, worker)
        self._numbers = Numbers()
        self.lines = [
            Line(address, shard, len(addresses), self._identity)
            for shard, address in enumerate(addresses)
        ]

    @property
    def worker(self) -> Worker | None:
        """Of several that push together; None: it pushes alone."""
        return self._identity.worker

    def is_together(self, call: Call[Any] | None) -> bool:
        """Whether the call is one that workers make as one, and this is a worker.

        Raises: ConfigError in a copy of a worker.
        """
        worker = self._identity.worker
        if worker is None or call is None or not call.IS_TOGETHER:
            return False
        if worker.place is None:
            raise ConfigError(
                f'{call.spoken()} in a copy of a client of mode="sync", which has no rank of its'
                " own; push where it was made, or connect here"
            )
        return True

    @property
    def greeting(self) -> Hello | None:
        """What is to be asked of every server before the next round can be numbered: `met`."""
        who = self._identity
        if who.worker is None or self._numbers.is_round_known:
            return None
        return Hello(who.session, who.client_id, who.worker.workers, who.worker.rank)

    def met(self, servers: Sequence[ServerInfo]) -> None:
        """What every server has answered to the greeting."""
        self._numbers.met(servers)

    def lose_round(self) -> None:
        """A round has failed, here at least: whether it was applied is to be asked."""
        self._numbers.lose()

    def pending(
        self, calls: Sequence[Call[Any] | None], seconds: float, now_s: float
    ) -> list[Pending]:
        """Calls that are made at a time, one a server, as they are submitted; a push gets its
        number. Who asks must submit them before anyone asks again.
        """
        number, deadline = 0, Deadline(seconds, now_s)
        if calls and isinstance(calls[0], Push):
            numbers = self._numbers
            is_round = self.is_together(calls[0])
            number = numbers.next_round() if is_round else numbers.next_push()
        return [Pending(call, number, deadline) for call in calls]

    def limits(self) -> ReadLimits:
        """Of one read: what every server takes that was met."""
        limits = self.lines[0].read_limits
        for line in self.lines[1:]:
            limits = limits.within(line.read_limits.keys, line.read_limits.frame_bytes)
        return limits

    def renew(self) -> None:
        """In a forked child: a session of its own, without a connection."""
        self._identity.renew()
        self._numbers = Numbers()
        for line in self.lines:
            line.forget_all()
