"""Blocking transport: one socket a server, driven by the threads that call.

Many threads have calls in flight on one connection. Whoever calls hands its bytes to the socket
itself, as far as the socket takes them; one of those who wait holds the role to wait for the socket
too, and receives for all. What a call is, its number, its deadline and whether it is sent again is
the line's business (`line`). A forked child starts anew: own sockets, own session, no client_id
(which would take the session over from its parent); so does a copy that was sent to a process.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from hybridps import _core
from hybridps.client.line import Line
from hybridps.client.pending import Pending
from hybridps.client.retry import check_timeout
from hybridps.client.session import Session
from hybridps.client.urls import Address
from hybridps.client.worker import COPY, Worker, kept
from hybridps.security.credentials import NOBODY, Credentials, refusal
from hybridps.verbs.calls import Hot, Push
from hybridps.verbs.face import Addressed
from hybridps.verbs.router import ReadLimits

# Below IOV_MAX of every system.
_BUFFERS_A_SEND: Final = 512
_RECEIVE_HINT: Final = 1 << 18
# What one thread sends before it lets others at the connection.
_TURN_BYTES: Final = 4 << 20
# How long a thread waits before it looks whether the one that receives is still there.
_FOLLOW_S: Final = 0.5
_NOT_NOW: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


def open_socket(
    address: Address, timeout: float, context: ssl.SSLContext | None = None, name: str = ""
) -> socket.socket:
    """A connected socket that does not block; with a context, encrypted, of a server that has a
    certificate of that name.
    """
    if address.port is None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(address.host)
        except BaseException:
            sock.close()
            raise
    else:
        sock = socket.create_connection((address.host, address.port), timeout=timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=name)
    sock.setblocking(False)
    return sock


class Channel:
    """One server: its line, and the socket that carries it.

    The lock is held for moments, never while somebody waits. Who holds the role opens, polls and
    closes the socket; others may hand it bytes, and wake who polls.
    """

    def __init__(
        self, line: Line, credentials: Credentials, context: ssl.SSLContext | None
    ) -> None:
        self.line = line
        self._context = context
        self._name = credentials.name_of(line.address.host)
        self._make()

    def _make(self) -> None:
        self._lock = threading.Lock()
        self._role = _core.Role()
        self._socket: socket.socket | None = None
        # The connection that the socket was opened for.
        self._carried: _core.ClientConnection | None = None
        self._poller = select.poll()
        self._polled_for = 0
        self._waker: tuple[socket.socket, socket.socket] | None = None
        # Of threads that wait for one that receives.
        self._followers: dict[Pending, threading.Lock] = {}

    def submit(self, pending: Pending, now_s: float) -> None:
        """Puts a call in line, and sends what the socket takes."""
        with self._lock, self.line as line:
            line.submit(pending)
            self._send(line, now_s)
            is_left = line.has_unsent or line.wire is None
        if is_left and self._role.is_taken:
            self._wake()

    def drive(self, pending: Pending) -> None:
        """Returns when the call is over."""
        while not pending.is_over:
            with self._role.claim() as is_mine:
                if is_mine:
                    self._pump(pending)
            if is_mine:
                self._hand_over()
            else:
                self._follow(pending)

    def give_up(self, pending: Pending) -> None:
        """The caller waits no longer."""
        with self._lock, self.line as line:
            line.give_up(pending)
            self._followers.pop(pending, None)

    def close(self) -> None:
        """Ends the connection for good; calls that wait in other threads fail."""
        with self._lock, self.line as line:
            line.close()
        self._wake()
        with self._role.claim() as is_mine:
            # Else whoever holds the role leaves it now, and closes the socket.
            if is_mine:
                self._drop()

    def reset_after_fork(self) -> None:
        """In a child: new locks, since a thread of the parent may hold the old ones."""
        for sock in (self._socket, *(self._waker or ())):
            if sock is not None:
                sock.close()
        self._make()
        self.line.forget_all()

    # Of who holds the role.

    def _pump(self, pending: Pending) -> None:
        """Moves bytes, of all calls, until this one is over."""
        line = self.line
        while not pending.is_over:
            now_s = time.monotonic()
            if line.is_connection_wanted(now_s):
                self._open(pending, now_s)
                continue
            due_s = line.next_check_s(now_s)
            # Rounded up, not to turn in circles for the last millisecond.
            ready = self._poll(line, int((due_s - now_s) * 1000) + 1)
            with self._lock, line:
                self._move(line, ready, due_s)
        if line.wire is not self._carried or line.is_closed:
            self._drop()

    def _poll(self, line: Line, wait_ms: int) -> dict[int, int]:
        sock = self._socket
        if sock is not None:
            wanted = select.POLLIN | (select.POLLOUT if line.has_unsent else 0)
            if wanted != self._polled_for:
                self._poller.register(sock, wanted)
                self._polled_for = wanted
        if self._waker is None:
            with self._lock:
                self._waker = waker = socket.socketpair()
            for end in waker:
                end.setblocking(False)
            self._poller.register(waker[0], select.POLLIN)
        return dict(self._poller.poll(max(0, min(wait_ms, 60_000))))

    def _move(self, line: Line, ready: dict[int, int], due_s: float) -> None:
        now_s = time.monotonic()
        if self._waker is not None and self._waker[0].fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._waker[0].recv(4096)
        if self._socket is not None and line.wire is self._carried:
            if ready.get(self._socket.fileno(), 0) & _READABLE:
                self._receive(line, self._socket, now_s)
            if line.has_unsent:
                self._send(line, now_s)
        if now_s >= due_s:
            line.check(now_s)
        if line.wire is not self._carried:
            self._close_socket()

    def _receive(self, line: Line, sock: socket.socket, now_s: float) -> None:
        wire = self._carried
        if wire is None:
            return
        is_more = True
        while is_more and line.wire is wire:
            try:
                count = sock.recv_into(wire.get_buffer(_RECEIVE_HINT))
            except _NOT_NOW:
                return
            except OSError as error:
                self._lose(line, error, now_s)
                return
            if not count:
                line.lost("the server closed the connection", now_s)
                return
            line.received(count, now_s)
            # What is decrypted already makes no socket readable.
            is_more = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _open(self, pending: Pending, now_s: float) -> None:
        line = self.line
        if line.wire is not self._carried:
            self._drop()
        within_s = min(line.open_within_s, max(pending.deadline.end_s - now_s, 0.001))
        try:
            sock = open_socket(line.address, within_s, self._context, self._name)
        except OSError as error:
            with self._lock, line:
                now_s = time.monotonic()
                self._lose(line, error, now_s)
                line.check(now_s)
            return
        with self._lock, line:
            if line.is_closed:
                sock.close()
                return
            now_s = time.monotonic()
            self._socket = sock
            line.opened(now_s)
            self._carried = line.wire
            self._send(line, now_s)

    def _drop(self) -> None:
        with self._lock:
            self._close_socket()
            if self.line.is_closed:
                for end in self._waker or ():
                    end.close()

    def _close_socket(self) -> None:
        sock, self._socket, self._carried = self._socket, None, None
        self._polled_for = 0
        if sock is not None:
            with contextlib.suppress(KeyError):  # It was never polled.
                self._poller.unregister(sock)
            sock.close()

    # Of all.

    def _send(self, line: Line, now_s: float) -> None:
        """Hands the socket what it takes, up to a fair share."""
        sock, left = self._socket, _TURN_BYTES
        if sock is None or line.wire is not self._carried:
            return
        while line.has_unsent and left > 0:
            views = line.views(_BUFFERS_A_SEND)
            try:
                if len(views) == 1 or isinstance(sock, ssl.SSLSocket):
                    count = sock.send(views[0])
                else:
                    count = sock.sendmsg(views)
            except _NOT_NOW:
                return
            except OSError as error:
                self._lose(line, error, now_s)
                return
            line.sent(count, now_s)
            left -= count

    @staticmethod
    def _lose(line: Line, error: OSError, now_s: float) -> None:
        if (refused := refusal(error, str(line.address))) is not None:
            line.refused(refused)
        line.lost(error, now_s)

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(OSError):
                waker[1].send(b"\0")

    def _follow(self, pending: Pending) -> None:
        """Waits until the call is over, or somebody has to take the role."""
        left_s = pending.deadline.end_s - time.monotonic()
        if left_s <= 0:
            with self._lock, self.line as line:
                line.check(time.monotonic())
            return
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            if pending.is_over or not self._role.is_taken:
                return
            self._followers[pending] = gate
            pending.wake = lambda: self._let_go(pending)
        gate.acquire(timeout=min(left_s, _FOLLOW_S))
        with self._lock:
            self._followers.pop(pending, None)

    def _let_go(self, pending: Pending) -> None:
        gate = self._followers.pop(pending, None)
        if gate is not None:
            gate.release()

    def _hand_over(self) -> None:
        """The role is free: one of those who wait may take it."""
        if self._followers:
            with self._lock:
                for pending in list(self._followers):
                    if not pending.is_over:
                        self._let_go(pending)
                        return


# Calls that are under way, each with the channel that has it.
_Waiting = list[tuple[Channel, Pending]]


class RemoteTransport:
    """Executes calls on servers. Safe to use from many threads, after a fork, and as a copy in
    another process.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        client_id: str | None,
        timeout: float,
        credentials: Credentials = NOBODY,
        wire_dtype: str = "float32",
        worker: Worker | None = None,
    ) -> None:
        self.wire_dtype = wire_dtype
        self.is_worker = worker is not None
        self._addresses = list(addresses)
        self._timeout = check_timeout(timeout, timeout)
        self._credentials = credentials
        self._session = Session(addresses, client_id, credentials, wire_dtype, worker)
        context = credentials.context()  # One for all servers: its files are read once.
        self._channels = [Channel(line, credentials, context) for line in self._session.lines]
        # Pushes to rounds that were not waited for.
        self._late: deque[_Waiting] = deque()
        self._make_locks()
        _OPEN.add(self)

    def _make_locks(self) -> None:
        # A push is numbered and put in all its lines before another one is numbered.
        self._numbering = threading.Lock()
        # One round of this worker at a time is begun.
        self._rounds = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy connects by itself, at its first call, as a client of its own."""
        settings = (self._timeout, self._credentials, self.wire_dtype)
        return RemoteTransport, (self._addresses, None, *settings, COPY if self.is_worker else None)

    @property
    def shards(self) -> int:
        """How many servers share the keys."""
        return len(self._channels)

    def limits(self) -> ReadLimits:
        """Of one read, as far as the servers were met."""
        return self._session.limits()

    def connect(self) -> None:
        """Meets every server, so that a wrong URL shows at once."""
        self._await([(channel, None) for channel in self._channels], self._timeout)

    def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order; at most one call a server."""
        seconds = check_timeout(timeout, self._timeout)
        asked = [(self._channels[shard], call) for shard, call in addressed]
        if asked and self._session.is_together(asked[0][1]):
            with self._rounds:
                return self._push_together(asked, seconds)
        if self._late and not isinstance(asked[0][1], Hot):
            # It tells, or changes, what these pushes have not yet.
            with self._rounds:
                self._catch_up(0)
        return self._await(asked, seconds)

    def close(self) -> None:
        """Ends the connections; a second call does nothing."""
        try:
            with self._rounds:
                self._catch_up(0)
        finally:
            for channel in self._channels:
                channel.close()

    def reset_after_fork(self) -> None:
        """In a child: a client of its own."""
        self._make_locks()
        self._late.clear()
        self._session.renew()
        for channel in self._channels:
            channel.reset_after_fork()

    def _push_together(self, asked: Sequence[tuple[Channel, Any]], seconds: float) -> list[Any]:
        waiting: _Waiting = []
        session = self._session
        staleness = session.worker.staleness if session.worker is not None else 0
        try:
            greeting = session.greeting
            if greeting is not None:
                session.met(self._await([(ch, greeting) for ch in self._channels], seconds))
            # What is acknowledged as a replay was no push to this round: it is to be asked anew.
            if staleness == 0 or (greeting is not None and asked[0][1].may_be_replay):
                replies = self._await(asked, seconds)
                if any(replies):
                    session.lose_round()
                return replies
            self._late.append(waiting)
            self._submit([(channel, kept(call)) for channel, call in asked], seconds, waiting)
            self._catch_up(staleness)
        except BaseException:
            session.lose_round()
            while self._late:
                self._give_up(self._late.popleft())
            raise
        return [False] * len(asked)

    def _catch_up(self, staleness: int) -> None:
        """Waits for all rounds but the last few."""
        while len(self._late) > staleness:
            waiting = self._late[0]
            self._drive(waiting)
            self._late.popleft()

    def _await(self, asked: Sequence[tuple[Channel, Any]], seconds: float) -> list[Any]:
        waiting: _Waiting = []
        try:
            self._submit(asked, seconds, waiting)
            return self._drive(waiting)
        finally:
            self._give_up(waiting)

    def _submit(
        self, asked: Sequence[tuple[Channel, Any]], seconds: float, waiting: _Waiting
    ) -> None:
        now_s = time.monotonic()
        calls = [call for _, call in asked]
        is_push = bool(calls) and isinstance(calls[0], Push)
        with self._numbering if is_push else contextlib.nullcontext():
            made = self._session.pending(calls, seconds, now_s)
            for (channel, _), pending in zip(asked, made, strict=True):
                waiting.append((channel, pending))
                channel.submit(pending, now_s)

    @staticmethod
    def _drive(waiting: _Waiting) -> list[Any]:
        for channel, pending in waiting:
            channel.drive(pending)
        return [pending.reply() for _, pending in waiting]

    @staticmethod
    def _give_up(waiting: _Waiting) -> None:
        for channel, pending in waiting:
            if not pending.is_over:
                channel.give_up(pending)


_OPEN: Final[weakref.WeakSet[RemoteTransport]] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for transport in list(_OPEN):
        transport.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
