"""The socket of one connection, on asyncio or uvloop. Tells `Connection` what happens to
it, and does what it is told. Never here: bounds, order, what verbs mean.
"""

import asyncio
import socket
import time
from typing import Any, cast

from hybridps.rpc.booking import Booking
from hybridps.rpc.connection import Connection
from hybridps.rpc.host import Host
from hybridps.rpc.limits import WRITE_HIGH_BYTES
from hybridps.rpc.runner import Runner
from hybridps.rpc.streaming import Streams

# What a unix socket may hold; the system may allow less.
UNIX_SEND_BYTES = 2 << 20


class Transport(asyncio.BufferedProtocol):
    """One connection; the `Port` of its state machine."""

    connection: Connection
    _socket: asyncio.Transport
    _streams: Streams

    def __init__(self, host: Host, runner: Runner) -> None:
        self._host = host
        self._runner = runner
        self._is_resuming = False

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection on, or refuses it at the limit."""
        host, self._socket = self._host, cast("asyncio.Transport", transport)
        self._socket.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        # uvloop keeps a reference to what the socket does not take, and copies nothing.
        is_tls = transport.get_extra_info("sslcontext") is not None
        is_kept = type(transport).__module__.startswith("uvloop") and not is_tls
        chunk_bytes = 1 << 62 if is_kept else WRITE_HIGH_BYTES
        peer = _name_of(transport.get_extra_info("peername"))
        self.connection = Connection(host, self, time.monotonic(), chunk_bytes, peer)
        self._streams = Streams(self.connection, self._socket, host.workers)
        _tune(transport.get_extra_info("socket"))
        if host.is_draining or len(host.transports) >= host.limits.connections:
            host.metrics.reject("connections")
            self.connection.end("OverloadedError: this server has as many connections as it takes")
            return
        host.transports.add(self)

    def get_buffer(self, sizehint: int) -> Any:
        """Where the socket's next bytes go."""
        return memoryview(self.connection.wire.get_buffer(sizehint))  # TLS slices it.

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self.connection.received(nbytes, time.monotonic())

    def eof_received(self) -> bool:
        """The peer sends no more."""
        return self.connection.eof()

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self.connection.full()

    def resume_writing(self) -> None:
        """The socket's buffer has room."""
        self._is_resuming = True
        self.connection.room(time.monotonic())
        self._is_resuming = False
        self._streams.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whichever side."""
        del exc
        self._host.transports.discard(self)
        self.connection.lost()
        self._streams.close()
        # The socket knows us: a cycle would stay until the collector comes.
        del self._socket

    # Called by the state machine.

    def start(self, booking: Booking) -> None:
        """Runs a call."""
        self._runner.start(self.connection, self._streams, booking)

    def write(self, chunk: memoryview) -> None:
        """Hands bytes to the socket."""
        if not self._socket.is_closing():
            self._socket.write(chunk)

    def read(self, *, on: bool) -> None:
        """Reads from the socket, or stops to."""
        if self._socket.is_closing():
            return
        if on:
            self._socket.resume_reading()
        else:
            self._socket.pause_reading()

    def close(self) -> None:
        """Closes the socket once it has sent what it holds."""
        if self._is_resuming:
            # asyncio would end a connection twice that is closed in there.
            asyncio.get_running_loop().call_soon(self._socket.close)
        else:
            self._socket.close()

    def abort(self) -> None:
        """Closes the socket now."""
        self._socket.abort()

    # Called by the listener.

    @property
    def is_idle(self) -> bool:
        """True if nothing was asked that is not answered, and all answers left."""
        connection = self.connection
        return connection.is_idle and not (
            connection.is_open and self._socket.get_write_buffer_size()
        )

    def check(self, now_s: float) -> None:
        """Lets the connection see how time goes by."""
        unsent_bytes = self._socket.get_write_buffer_size() + self._streams.unsent_bytes
        self.connection.check(now_s, unsent_bytes)


def _name_of(peer: Any) -> str:
    """Where a connection comes from, for the log."""
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"


def _tune(own: socket.socket | None) -> None:
    if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    elif own is not None:
        # A unix socket holds little by itself, and a large reply would take many turns between
        # the two sides. TCP finds its own size.
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BYTES)
