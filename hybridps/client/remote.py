"""Blocking transport: one socket a server, driven by the thread that calls.

A connection serves one call at a time, under its lock; a call that goes to many servers is sent to
all before the first answer is read. After a lost connection everything is sent again, pushes under
their old number. A forked child starts anew: own sockets, own session, no client_id (which would
take the session over from its parent).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hybridps import _core
from hybridps.client import messages
from hybridps.client.calls import Call, Push
from hybridps.client.messages import LostError, ServerInfo
from hybridps.client.retry import Deadline, check_timeout, delays
from hybridps.client.urls import Address
from hybridps.client.verbs import Addressed
from hybridps.errors import HybridPSError, UnavailableError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

# Below IOV_MAX of every system.
_BUFFERS_A_SEND: Final = 512
_RECEIVE_HINT: Final = 1 << 18


def open_socket(address: Address, timeout: float) -> socket.socket:
    """A connected socket."""
    if address.port is None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(address.host)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port), timeout=timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


class Connection:
    """One server. All methods but `acquire` and `close` need the lock."""

    def __init__(self, address: Address, shard: int, shards: int, identity: Identity) -> None:
        self.address = address
        self._place = (shard, shards)
        self._identity = identity
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._wire: _core.ClientConnection | None = None
        self._info: ServerInfo | None = None
        self._last_push = 0
        self._is_closed = False

    def acquire(self, deadline: Deadline, verb: str) -> None:
        """Waits for other threads' calls."""
        if not self._lock.acquire(timeout=deadline.left):
            raise deadline.error(verb, self.address)

    def release(self) -> None:
        """The next call may come."""
        self._lock.release()

    def next_push(self) -> int:
        """The number of a new push."""
        self._last_push += 1
        return self._last_push

    def drop(self) -> None:
        """Ends the connection; the next call makes a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._wire = self._info = None

    def close(self) -> None:
        """Ends the connection for good; a call that waits in another thread fails."""
        self._is_closed = True
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self.drop()

    def connect(self, deadline: Deadline) -> ServerInfo:
        """The server, connected and checked. Raises OSError or LostError, to be tried again."""
        if self._info is not None:
            return self._info
        if self._is_closed:
            raise UnavailableError("this client is closed; connect again")
        try:
            self._socket = open_socket(self.address, max(deadline.left, 0.001))
            self._wire = _core.ClientConnection()
            question, data = self._wire.start(self._identity.session, self._identity.client_id)
            self._send([data], deadline)
            info = messages.read_hello(self.receive(question, deadline))
            messages.check_server(info, str(self.address), *self._place)
        except BaseException:
            self.drop()
            raise
        self._info = info
        return info

    def connect_patiently(self, deadline: Deadline) -> ServerInfo:
        """As `connect`, trying again until the deadline. Raises UnavailableError then."""
        for delay in delays():
            try:
                return self.connect(deadline)
            except HybridPSError:
                raise
            except (OSError, LostError) as error:
                if deadline.left <= delay:
                    raise deadline.unavailable(self.address, error) from None
            time.sleep(delay)
        raise AssertionError("delays never end")

    def send(self, call: Call, number: int, deadline: Deadline) -> int:
        """Sends a call over the open connection; returns its question."""
        if self._wire is None:
            raise LostError("not connected")
        question, buffers = messages.begin(self._wire, call, number)
        try:
            self._send(buffers, deadline)
        except BaseException:
            # Half a call may be on its way: nothing can follow it.
            self.drop()
            raise
        return question

    def receive(self, question: int, deadline: Deadline) -> _core.Answer:
        """Waits for the answer to `question`; late answers to others are dropped."""
        if self._socket is None or self._wire is None:
            raise LostError("not connected")
        patience = 0.0
        try:
            while True:
                left = max(deadline.left, 0.000_001)
                if not left <= patience <= 1.1 * left:
                    # Not for every piece of a large answer: it is a system call.
                    patience = left
                    self._socket.settimeout(left)
                for answer in _read(self._socket, self._wire):
                    if answer.question == question:
                        return answer
        except TimeoutError:
            # The connection stays: its answer is dropped when it comes.
            self._wire.forget(question)
            raise
        except BaseException:
            self.drop()
            raise

    def reset_after_fork(self) -> None:
        """In a child: a new lock, since a thread of the parent may hold the old one."""
        self._lock = threading.Lock()
        self.drop()
        self._last_push = 0

    def _send(self, buffers: Sequence[Buffer], deadline: Deadline) -> None:
        if self._socket is None:
            raise LostError("not connected")
        views = messages.views(buffers)
        start = 0
        while start < len(views):
            self._socket.settimeout(max(deadline.left, 0.000_001))
            sent = self._socket.sendmsg(views[start : start + _BUFFERS_A_SEND])
            while start < len(views) and sent >= len(views[start]):
                sent -= len(views[start])
                start += 1
            if sent:
                views[start] = views[start][sent:]


def _read(sock: socket.socket, wire: _core.ClientConnection) -> list[_core.Answer]:
    """Answers that the next bytes complete."""
    count = sock.recv_into(wire.get_buffer(_RECEIVE_HINT))
    if count == 0:
        raise LostError("the server closed the connection")
    answers = wire.received(count)
    if wire.closed is not None and not answers:
        raise LostError(wire.closed)
    return answers


class Identity:
    """Who this process is to its servers."""

    def __init__(self, client_id: str | None) -> None:
        self.client_id = client_id or ""
        self.session = secrets.randbits(63) + 1

    def renew(self) -> None:
        """A forked child is a client of its own."""
        self.client_id = ""
        self.session = secrets.randbits(63) + 1


class Exchange:
    """One call on its way to one server. Holds the connection's lock from `acquire` to `release`.

    `LostError` and the operating system's errors lead to another attempt; HybridPSErrors (some of
    which are OSErrors too) end the call.
    """

    def __init__(self, connection: Connection, call: Call, deadline: Deadline) -> None:
        self._connection = connection
        self._call = call
        self._deadline = deadline
        self._number = 0
        self._sends = 0
        self._question: int | None = None
        self._cause: object = "no connection"
        self.reply: Any = None

    def acquire(self) -> None:
        """Waits for the connection, the server, and its consent to the size of the call."""
        self._connection.acquire(self._deadline, messages.verb_of(self._call))
        try:
            info = self._connection.connect_patiently(self._deadline)
            messages.check_limits(info, self._call, str(self._connection.address))
        except BaseException:
            self._connection.release()
            raise

    def send(self) -> None:
        """Sends the call; a lost connection is left to `end`."""
        if self._number == 0 and isinstance(self._call, Push):
            self._number = self._connection.next_push()
        try:
            self._connection.connect(self._deadline)
            self._sends += 1
            self._question = self._connection.send(self._call, self._number, self._deadline)
        except HybridPSError:
            raise
        except (OSError, LostError) as error:
            self._cause = error

    def end(self) -> None:
        """Waits for the reply, sending the call again as often as the connection is lost."""
        for delay in delays():
            if self._question is not None and self._receive(self._question):
                return
            if self._deadline.left <= delay:
                raise self._deadline.unavailable(self._connection.address, self._cause)
            time.sleep(delay)
            self.send()

    def release(self) -> None:
        """Gives the connection back."""
        self._connection.release()

    def _receive(self, question: int) -> bool:
        self._question = None
        try:
            answer = self._connection.receive(question, self._deadline)
            self.reply = messages.finish(self._call, answer, is_first=self._sends == 1)
        except HybridPSError:
            raise
        except TimeoutError:
            verb = messages.verb_of(self._call)
            raise self._deadline.error(verb, self._connection.address) from None
        except (OSError, LostError) as error:
            self._connection.drop()
            self._cause = error
            return False
        return True


class RemoteTransport:
    """Executes calls on servers. Safe to use from many threads, and after a fork."""

    def __init__(self, addresses: Sequence[Address], client_id: str | None, timeout: float) -> None:
        self._identity = Identity(client_id)
        self._timeout = timeout
        self._connections = [
            Connection(address, shard, len(addresses), self._identity)
            for shard, address in enumerate(addresses)
        ]
        _OPEN.add(self)

    @property
    def shards(self) -> int:
        """How many servers share the keys."""
        return len(self._connections)

    def connect(self) -> None:
        """Meets every server, so that a wrong URL shows at once."""
        deadline = Deadline(self._timeout)
        for connection in self._connections:
            connection.acquire(deadline, "connect")
            try:
                connection.connect_patiently(deadline)
            finally:
                connection.release()

    def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order; at most one call a server, in order of the servers."""
        deadline = Deadline(check_timeout(timeout, self._timeout))
        exchanges = [Exchange(self._connections[s], call, deadline) for s, call in addressed]
        with contextlib.ExitStack() as held:
            # In order of the servers, so that two calls never wait for each other.
            for exchange in exchanges:
                exchange.acquire()
                held.callback(exchange.release)
            for exchange in exchanges:
                exchange.send()
            errors = [error for error in map(_end, exchanges) if error is not None]
        if errors:
            raise errors[0]
        return [exchange.reply for exchange in exchanges]

    def close(self) -> None:
        """Ends the connections; a second call does nothing."""
        for connection in self._connections:
            connection.close()

    def reset_after_fork(self) -> None:
        """In a child: a client of its own."""
        self._identity.renew()
        for connection in self._connections:
            connection.reset_after_fork()


def _end(exchange: Exchange) -> HybridPSError | None:
    try:
        exchange.end()
    except HybridPSError as error:
        return error
    return None


_OPEN: Final[weakref.WeakSet[RemoteTransport]] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for transport in list(_OPEN):
        transport.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
