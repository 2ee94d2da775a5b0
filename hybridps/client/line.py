"""The calls of one server as a state machine: calls, bytes and time in, bytes and outcomes out.

No socket, no clock, no lock. A driver opens a connection when one is wanted, tells what happened to
it, and moves bytes; everything that outlives a connection stands here. Calls leave in the order in
which they were submitted, and after a lost connection those without an outcome leave again in that
order, pushes under their old number: so pushes apply in send order, once, and a call sees exactly
the pushes before it. Nobody waits longer than his deadline, and a peer that is silent is replaced:
after a quarter of the shortest deadline it is asked for a sign of life, which any server gives at
once, and after another it is taken for dead.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from hybridps import _core
from hybridps.client import messages
from hybridps.client.parts import parts_of
from hybridps.client.pending import Pending
from hybridps.client.retry import delays
from hybridps.client.urls import Address
from hybridps.errors import HybridPSError, UnavailableError
from hybridps.verbs.calls import ServerInfo
from hybridps.verbs.router import DEFAULT_LIMITS

if TYPE_CHECKING:
    from hybridps.client.session import Identity

# Bytes that are encoded ahead of the socket: calls are cheap to hold as arrays, dear as copies.
_AHEAD_BYTES: Final = 256 << 10
# How long a peer may be silent, as a share of the shortest deadline, and the bounds of that.
_SILENT_SHARE: Final = 0.25
_SILENT_MIN_S: Final = 0.25
_SILENT_MAX_S: Final = 15.0
_DOUBLINGS_MAX: Final = 8
_NEVER: Final = float("inf")


class Line:
    """The calls of one server. A driver that was interrupted inside a method finds the line in
    order again: it enters with `with line:`, which gives a torn connection up.
    """

    def __init__(self, address: Address, shard: int, shards: int, identity: Identity) -> None:
        self.address = address
        # Of the present connection; None: there is none.
        self.wire: _core.ClientConnection | None = None
        self.is_closed = False
        # Of one read, as the server said when it was last met.
        self.read_limits = DEFAULT_LIMITS
        self._place = (shard, shards)
        self._identity = identity
        self._is_torn = False
        self._reset()

    def _reset(self) -> None:
        self.wire = None
        self._info: ServerInfo | None = None
        self._hello = -1
        # Calls not sent over the present connection; parts of the first may have been.
        self._waiting: deque[Pending] = deque()
        # By question, in the order in which they were sent.
        self._sent: dict[int, Pending] = {}
        # Bytes begun, each with the call whose arrays they are.
        self._outgoing: deque[tuple[memoryview, Pending | None]] = deque()
        self._outgoing_bytes = 0
        self._cause: object = "no connection"
        self._delays = delays()
        self._retry_s = 0.0
        self._failures = 0
        # Since when something is awaited and nothing came; since when a sign of life is.
        self._silent_since_s: float | None = None
        self._probed_s: float | None = None
        # When `check` has something to do; of calls, not of silence.
        self._next_deadline_s = _NEVER

    def __enter__(self) -> Self:
        if self._is_torn:
            self.lost("a call was interrupted", 0.0)
        self._is_torn = True
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._is_torn = kind is not None

    # Calls in.

    def submit(self, pending: Pending) -> None:
        """Puts a call in line."""
        if self.is_closed:
            pending.fail(UnavailableError("this client is closed; connect again"))
            return
        self._waiting.append(pending)
        self._next_deadline_s = min(self._next_deadline_s, pending.deadline.end_s)
        if self._info is not None:
            self._encode()

    def give_up(self, pending: Pending) -> None:
        """The caller wants no answer any more, and its arrays back. A late answer is dropped; the
        connection and all other calls are as they were.
        """
        pending.is_over = True
        pending.wake = None
        if pending in self._waiting:
            self._waiting.remove(pending)
        for question in [q for q, sent in self._sent.items() if sent is pending]:
            del self._sent[question]
            if self.wire is not None:
                self.wire.forget(question)
        if any(owner is pending for _, owner in self._outgoing):
            # It is on its way, and nothing can follow half a call.
            self._outgoing = deque(
                (memoryview(bytes(view)), None) if owner is pending else (view, owner)
                for view, owner in self._outgoing
            )

    def close(self) -> None:
        """Fails all calls, and takes no more."""
        self.is_closed = True
        self._fail(UnavailableError("this client was closed while a call waited; connect again"))
        self._down()

    def forget_all(self) -> None:
        """In a forked child: calls and connection are the parent's."""
        self._reset()
        self._is_torn = False

    # What the driver asks.

    @property
    def is_wanted(self) -> bool:
        """True while calls wait for something."""
        return bool(self._waiting or self._sent)

    def is_connection_wanted(self, now_s: float) -> bool:
        """True if a connection is to be opened now."""
        return self.wire is None and bool(self._waiting) and now_s >= self._retry_s

    @property
    def open_within_s(self) -> float:
        """What an attempt to connect may take."""
        return self._patience_s()

    def next_check_s(self, now_s: float) -> float:
        """When `check`, or a new attempt to connect, is due at the latest."""
        if self.wire is None:
            return min(self._next_deadline_s, max(self._retry_s, now_s))
        return min(self._next_deadline_s, now_s + _SILENT_MIN_S)

    # What happened to the connection.

    def opened(self, now_s: float) -> None:
        """A socket is connected: says hello."""
        who = self._identity
        self.wire = _core.ClientConnection(dtype=who.wire_dtype)
        place = None if who.worker is None else who.worker.place
        self._hello, data = self.wire.start(who.session, who.client_id, who.token, place)
        self._put(data, None)
        self._silent_since_s, self._probed_s = now_s, None

    def lost(self, cause: object, now_s: float) -> None:
        """The connection ended, or could not be made: calls go back in line, in order."""
        again = dict.fromkeys((*self._sent.values(), *self._waiting))
        was_up = self._info is not None
        # In this order: whoever is interrupted in here leaves no call out.
        self._waiting = deque(pending for pending in again if not pending.is_over)
        self._down()
        self._cause = cause
        for pending in self._waiting:
            pending.restart([])
        if was_up:
            self._delays, self._failures = delays(), 0
        else:
            self._failures += 1
        self._retry_s = now_s + (0.0 if was_up else next(self._delays))

    def refused(self, error: HybridPSError) -> None:
        """The server does not let us in, and would not the next time either."""
        self._fail(error)
        self._down()

    def received(self, count: int, now_s: float) -> None:
        """So many bytes came into the buffer of `wire`."""
        wire = self.wire
        if wire is None:
            return
        answers = wire.received(count)
        self._probed_s = None
        for answer in answers:
            if answer.kind == "exception" and answer.exception[0] == "disconnected":
                # The server is going away: calls are sent again, in their place in the order.
                self.lost(answer.exception[2], now_s)
                return
            if answer.question == self._hello:
                self._greeted(answer)
            elif (pending := self._sent.get(answer.question)) is not None:
                pending.answer(answer)
                del self._sent[answer.question]
        self._silent_since_s = now_s if self._sent or self._info is None else None
        if self._waiting:
            self._encode()
        if wire.closed is not None:
            self.lost(wire.closed, now_s)

    def sent(self, count: int, now_s: float) -> None:
        """The socket took so many bytes of `views`."""
        self._outgoing_bytes -= count
        while count:
            view, owner = self._outgoing[0]
            if count < len(view):
                self._outgoing[0] = (view[count:], owner)
                break
            count -= len(view)
            self._outgoing.popleft()
        if self._silent_since_s is None or self._outgoing:
            # What the peer takes of a long message is a sign of life; what the system takes of a
            # short one is not.
            self._silent_since_s = now_s
        if self._info is not None and self._waiting:
            self._encode()

    def views(self, limit: int) -> list[memoryview]:
        """The next bytes to send, in at most `limit` pieces."""
        if len(self._outgoing) == 1:
            return [self._outgoing[0][0]]
        return [self._outgoing[n][0] for n in range(min(limit, len(self._outgoing)))]

    def take(self, limit: int, now_s: float) -> bytes:
        """The next bytes to send, at most `limit`, as a copy that is nobody else's."""
        pieces: list[memoryview] = []
        left = limit
        for view, _ in self._outgoing:
            pieces.append(view[:left])
            left -= len(pieces[-1])
            if left == 0:
                break
        self.sent(limit - left, now_s)
        return b"".join(pieces)

    @property
    def has_unsent(self) -> bool:
        """True while bytes wait for the socket."""
        return bool(self._outgoing)

    def check(self, now_s: float) -> None:
        """Time goes by: ends calls whose time is over, and a connection that seems dead."""
        patience_s = self._patience_s()
        if now_s >= self._next_deadline_s:
            self._expire(now_s)
        since_s = self._silent_since_s
        if self.wire is None or since_s is None:
            return
        if self._probed_s is not None:
            if now_s - self._probed_s >= patience_s:
                self.lost("it is silent", now_s)
        elif now_s - since_s >= patience_s:
            if self._info is None:
                self.lost("timed out waiting for its hello", now_s)
            else:
                self._probed_s = now_s
                self._put(self.wire.probe(), None)

    # Inside.

    def _patience_s(self) -> float:
        calls = (*self._sent.values(), *self._waiting)
        shortest_s = min((p.deadline.timeout for p in calls), default=_SILENT_MAX_S)
        share_s = max(_SILENT_MIN_S, min(shortest_s * _SILENT_SHARE, _SILENT_MAX_S))
        # Longer from attempt to attempt: a server may be slow. But there is to be another one.
        longest_s = max(shortest_s / 2, _SILENT_MIN_S)
        return min(share_s * float(1 << min(self._failures, _DOUBLINGS_MAX)), longest_s)

    def _expire(self, now_s: float) -> None:
        for pending in dict.fromkeys((*self._sent.values(), *self._waiting)):
            if pending.deadline.end_s <= now_s:
                deadline, wake = pending.deadline, pending.wake
                pending.error = (
                    deadline.unavailable(self.address, self._cause)
                    if self._info is None
                    else deadline.error(pending.verb, self.address, self._workers_of(pending))
                )
                self.give_up(pending)
                if wake is not None:
                    wake()
        left = (*self._sent.values(), *self._waiting)
        self._next_deadline_s = min((p.deadline.end_s for p in left), default=_NEVER)

    def _workers_of(self, pending: Pending) -> int:
        worker, call = self._identity.worker, pending.call
        return worker.workers if worker and call is not None and call.IS_TOGETHER else 0

    def _greeted(self, answer: _core.Answer) -> None:
        try:
            info = messages.read_hello(answer)
            messages.check_server(info, str(self.address), *self._place)
            messages.check_dtype(info, self._identity.wire_dtype, str(self.address))
            if self._identity.worker is not None:
                messages.check_workers(info, str(self.address))
        except HybridPSError as error:
            self.refused(error)
            return
        self._info = info
        self.read_limits = DEFAULT_LIMITS.within(info.keys_limit, info.frame_limit)
        self._delays, self._failures = delays(), 0
        self._encode()

    def _encode(self) -> None:
        """Begins calls, in order, as far ahead of the socket as is of use."""
        wire, info = self.wire, self._info
        while wire and info and self._waiting and self._outgoing_bytes < _AHEAD_BYTES:
            pending = self._waiting[0]
            if pending.is_over:
                self._waiting.popleft()
                continue
            if pending.is_held_up:
                break
            try:
                self._begin(wire, info, pending)
            except HybridPSError as error:
                self._waiting.popleft()
                pending.fail(error)
            except Exception as error:  # noqa: BLE001 - it must not stop those behind it
                self._waiting.popleft()
                pending.fail(HybridPSError(f"{pending.verb} could not be sent: {error}"))

    def _begin(self, wire: _core.ClientConnection, info: ServerInfo, pending: Pending) -> None:
        """Begins the next part of the call that is first in line."""
        if pending.call is None:
            self._waiting.popleft()
            pending.end()
            return
        if not pending.sent:
            messages.check_known(info, pending.call, str(self.address))
            pending.restart(parts_of(info, pending.call, str(self.address)))
            pending.sends += 1
        part = pending.parts[pending.sent]
        question, buffers = messages.begin(wire, part.call, pending.number, part.total)
        pending.sent += 1
        self._sent[question] = pending
        if pending.sent == len(pending.parts):
            self._waiting.popleft()
        for buffer in buffers:
            self._put(buffer, pending)

    def _put(self, data: Any, owner: Pending | None) -> None:
        view = memoryview(data)
        if view.nbytes:
            self._outgoing.append((view.cast("B"), owner))
            self._outgoing_bytes += view.nbytes

    def _down(self) -> None:
        self.wire = self._info = None
        self._hello = -1
        self._sent = {}
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._silent_since_s = self._probed_s = None

    def _fail(self, error: HybridPSError) -> None:
        for pending in dict.fromkeys((*self._sent.values(), *self._waiting)):
            pending.fail(error)
        self._sent.clear()
        self._waiting.clear()
