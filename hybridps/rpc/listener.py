"""Accepts connections, sweeps the stalled ones away, and drains them when the server stops."""

import asyncio
import socket
import ssl
import time

from hybridps import _core
from hybridps.rpc.host import Host, Metrics, Replica, Service, Workers
from hybridps.rpc.limits import Limits
from hybridps.rpc.runner import Runner
from hybridps.rpc.transport import Transport
from hybridps.security.tokens import Keyring

__all__ = ["Limits", "Listener"]

BACKLOG = 512
# What a peer may take to agree on keys, and to end.
HANDSHAKE_S = 10.0
_SWEEP_EVERY_S = 0.5
_POLL_EVERY_S = 0.01


class Listener:
    """All connections of one server."""

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
        self._host = Host(store, service, workers, metrics, limits, keyring, replica)
        self._runner = Runner(self._host)
        self._servers: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._host.transports)

    @property
    def inflight_bytes(self) -> int:
        """Bytes of requests and replies in flight now."""
        host = self._host
        return host.frames.used + host.replies.used + host.pushes.used

    @property
    def waiting_pushes(self) -> int:
        """Pushes that wait for those of other workers now."""
        return len(self._host.rounds.waiting())

    async def listen(self, bound: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accepts connections on a bound socket, TCP or unix, until `drain`; encrypted if asked."""
        loop = asyncio.get_running_loop()
        listen = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
        timeout_s = None if tls is None else HANDSHAKE_S
        server = await listen(
            self._connection,
            sock=bound,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=timeout_s,
            ssl_shutdown_timeout=timeout_s,
        )
        self._servers.append(server)
        if self._sweep is None:
            _core.tune_allocator()
            self._sweep = loop.call_later(_SWEEP_EVERY_S, self._check)

    async def drain(self, timeout_s: float) -> None:
        """Accepts and reads no more, finishes the calls in flight, closes every connection."""
        self._host.is_draining = True
        for server in self._servers:
            server.close()
        self._runner.together.close()
        for transport in list(self._host.transports):
            transport.connection.drain()
        deadline = time.monotonic() + timeout_s
        # Busy is the sum of many small states, and this happens once in a server's life.
        while self._is_busy() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_EVERY_S)
        if self._sweep is not None:
            self._sweep.cancel()
        for transport in list(self._host.transports):
            transport.connection.end("UnavailableError: this server is shutting down")
        # Let the loop deliver the last bytes and the closes.
        await asyncio.sleep(0)

    def _is_busy(self) -> bool:
        return self._runner.is_busy or any(not t.is_idle for t in self._host.transports)

    def _connection(self) -> Transport:
        return Transport(self._host, self._runner)

    def _check(self) -> None:
        now = time.monotonic()
        for transport in list(self._host.transports):
            transport.check(now)
        self._runner.together.check(now)
        self._sweep = asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, self._check)
