"""The server's side of one connection as a state machine: bytes and time in, actions out.

No socket, no clock, no event loop. `received`, `room`, `full`, `eof`, `lost`, `check` say what has
happened; what is to be done is told to the `Port`. What a call holds is in its `Booking`; the
connection keeps all of them, so that none outlives it but those that somebody runs.
Bounds: bytes of frames and replies (with all other connections), calls in flight, unsent bytes; at
a bound the socket is not read, which pushes back to the peer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from hybridps import _core
from hybridps.errors import AuthError, HybridPSError, OverloadedError
from hybridps.rpc.booking import Booking
from hybridps.rpc.budget import Grant
from hybridps.rpc.host import Host
from hybridps.rpc.limits import CALLS_MAX, SMALL_REPLY_BYTES
from hybridps.rpc.outbox import Outbox
from hybridps.rpc.sequencer import Place, Sequencer
from hybridps.security.rights import Right
from hybridps.security.tokens import Access
from hybridps.verbs import VERBS
from hybridps.verbs.kinds import Order

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger("hybridps.rpc")

# A large frame has to arrive at this rate, or its sender is cut.
_SLOWEST_BYTES_S = 64 << 10


class Port(Protocol):
    """What a connection has done: its socket, and whoever runs its calls."""

    def start(self, booking: Booking) -> None:
        """Runs a call whose turn it is, and tells `answered` or `ended`, perhaps at once."""

    def write(self, chunk: memoryview) -> None:
        """Hands bytes to the socket, which may say `full` in here."""

    def read(self, *, on: bool) -> None:
        """Reads from the socket, or stops to."""

    def close(self) -> None:
        """Closes the socket once it has sent what it was handed."""

    def abort(self) -> None:
        """Closes the socket now."""


class _Nobody:
    """The port of a connection that is lost."""

    def start(self, booking: Booking) -> None:
        """Nothing starts any more."""

    def write(self, chunk: memoryview) -> None:
        """Nothing leaves any more."""

    def read(self, *, on: bool) -> None:
        """Nothing comes any more."""

    def close(self) -> None:
        """It is closed."""

    def abort(self) -> None:
        """It is closed."""


class Connection:
    """One connection. Whoever answers hello says who has come: `enter`.

    `chunk_bytes`: what the socket is handed at once.
    """

    def __init__(
        self, host: Host, port: Port, now_s: float, chunk_bytes: int = 1 << 62, peer: str = ""
    ) -> None:
        limits = host.limits
        self.wire = _core.Connection(
            host.store, frame_limit=limits.frame_bytes, keys_limit=limits.keys
        )
        self.outbox = Outbox()
        self.is_open = True
        self._host = host
        self._port = port
        self._limits = limits
        self._chunk_bytes = chunk_bytes
        self._sequencer = Sequencer()
        self._bookings: set[Booking] = set()
        # For the frame on its way, if it is large.
        self._incoming: Grant | None = None
        # For all parts of the push that is on its way in parts.
        self._collected: Grant | None = None
        # Since when its next part is due; None: from the next look at the clock on.
        self._part_s: float | None = None
        self._is_logged_in = False
        # What its token allows; None: everything, if the server asks for none.
        self._access: Access | None = None
        self.peer = peer
        # The name it speaks for, if any, and whether another session does by now.
        self._client_id = ""
        self._is_taken_over = False
        # Its place among workers that push together; None: it pushes alone.
        self.rank: int | None = None
        self._is_reading = True
        self._is_full = False
        self._is_ending = False
        # None: from the next look at the clock on.
        self._heard_s: float | None = now_s
        self._frame_since_s: float | None = None
        self._written_s = now_s
        self._backlog_bytes = 0

    @property
    def session(self) -> int:
        """Session of this connection's pushes; 0: hello was not said."""
        return self.wire.session

    @session.setter
    def session(self, session: int) -> None:
        self.wire.session = session

    def enter(
        self, session: int, client_id: str, worker: tuple[int, int] | None = None, last: int = 0
    ) -> int:
        """hello was said, and the store has let the session in.

        `worker`: how many push together, and its rank; `last`: their last round in the store.
        Returns the last round. Raises: ConfigError for a worker that does not fit the others.
        """
        self.wire.session = session
        if worker is not None:
            for held in self._host.rounds.enter(self, *worker, session, client_id, last):
                held.connection.forsake(held.booking)
            self.rank = worker[1]
        if client_id:
            self._client_id = client_id
            self._host.clients.enter(self, client_id)
        return self._host.rounds.last

    @property
    def caller(self) -> str:
        """Name of its token, for the log; empty where the server asks for none."""
        return "" if self._access is None else self._access.name

    def permit(self, verb: str, right: Right, tables: Iterable[int | str]) -> None:
        """Raises AuthError when its token does not allow the verb on these tables."""
        access = self._access
        if access is None:
            return
        is_free = access.entry.is_of_all_tables
        access.check(verb, right, () if is_free else map(self._host.name_of, tables))

    def take_over(self) -> None:
        """A newer session speaks for this one's name: calls from now on are refused."""
        self._is_taken_over = True

    @property
    def is_idle(self) -> bool:
        """True if nothing was asked that is not answered, and all answers were handed over."""
        return not self.is_open or not (self._bookings or self.outbox)

    # What the socket says.

    def received(self, count: int, now_s: float) -> None:
        """So many bytes came into the buffer of `wire`."""
        events = self.wire.received(count, self._at_once_bytes())
        for verb, code, seconds in self.wire.noted():
            self._host.metrics.observe(verb, code, seconds, 0.0)
        self._heard_s = now_s
        wanted = self.wire.frame_wanted
        whole = None
        if not wanted:
            # The frame is whole; the call in it takes over what was granted for it.
            whole, self._incoming = self._incoming, None
            self._frame_since_s = None
        self._take(events, whole, now_s)
        if wanted and self._incoming is None and self.is_open:
            self._incoming = Grant(self._host.frames, wanted)
            self._incoming.take(self._frame_granted)
            if self._incoming.is_held:
                self._heard_s = self._frame_since_s = now_s
        self._check_reading()

    def eof(self) -> bool:
        """The peer sends no more, but may still read: what it asked is answered first, but for
        pushes that wait for other workers: a peer that is gone looks the same.

        True if the socket must stay open for that.
        """
        self._is_reading = False
        self._is_ending = True
        for held in self._host.rounds.leave(self):
            self.forsake(held.booking)
        return not self._end_if_done()

    def full(self) -> None:
        """The socket takes no more."""
        self._is_full = True

    def room(self, now_s: float) -> None:
        """The socket takes bytes again."""
        self._is_full = False
        self._written_s = now_s
        self.outbox.handed_over()
        self.flush()

    def lost(self) -> None:
        """The socket is gone. Calls that somebody runs go on, their answers are dropped."""
        self.is_open = False
        # Who holds the socket holds us too: both are to go as soon as nobody needs them.
        self._port = _Nobody()
        self.outbox.close()
        if self._client_id:
            self._host.clients.leave(self, self._client_id)
        for held in self._host.rounds.leave(self):
            self._release(held.booking)
        if self._incoming is not None:
            self._incoming.release()
            self._incoming = None
        for booking in [b for b in self._bookings if not b.is_started]:
            self._release(booking)
        if not self._bookings:
            self._forget_parts()

    # What the server says.

    def end(self, reason: str) -> None:
        """Tells the peer why, and closes now; what the socket was handed is still sent."""
        self.wire.abort(reason)
        self._write_outgoing()
        self._is_ending = True
        self._port.close()

    def drain(self) -> None:
        """Takes no further call; closes when those in flight are answered."""
        self._is_ending = True
        self._check_reading()
        self._end_if_done()

    def check(self, now_s: float, socket_bytes: int) -> None:
        """Ends the connection if it holds what others wait for, or holds on to nothing.

        `socket_bytes`: what the socket was handed and has not sent.
        """
        limits, host = self._limits, self._host
        backlog = self._look(now_s, socket_bytes)
        silent_s = 0.0 if self._heard_s is None else now_s - self._heard_s
        is_pressed = host.replies.is_short and backlog > SMALL_REPLY_BYTES
        unread_s = limits.pressed_s if is_pressed else limits.unread_s
        frame_s = limits.pressed_s if host.frames.is_short else limits.frame_s
        if now_s - self._written_s > unread_s:
            self._abandon("unread", "replies were not read")
        elif self._owes_bytes() and silent_s > frame_s:
            self._abandon("frame", "a message was begun and not finished")
        elif self._is_slow(now_s):
            self._abandon("frame", "a message took too long to arrive")
        elif self._is_push_stale(now_s):
            self._abandon("parts", "a push was begun and not finished")
        elif not self._is_logged_in and silent_s > limits.login_s:
            self._abandon("login", "nobody logged in")
        elif backlog == 0 and not self._bookings and silent_s > limits.idle_s:
            self._abandon("idle", "nothing was asked for long")

    # What those say who run calls.

    def answered(self, booking: Booking, reply: ReadableBuffer) -> None:
        """A call has ended with this reply; it is sent, and calls behind it may start."""
        if self.is_open:
            grant, booking.reply = booking.reply, None
            self.outbox.put(reply, grant)
            self.flush()
        self.ended(booking)

    def keep(self, booking: Booking) -> None:
        """A push waits for those of other workers, and nobody for it: calls behind it may start.
        Its bytes count as those of pushes in parts, which have a budget of their own.

        Raises: OverloadedError when there is no room; to wait for it would be to wait for oneself.
        """
        count, pushes = booking.call.frame_bytes, self._host.pushes
        if self._collected is not None and not self.wire.is_collecting:
            grant, self._collected = self._collected, None
        elif not pushes.has_room(count):
            raise OverloadedError(
                f"pushes that wait for other workers hold {pushes.used} bytes, and {count} more are"
                f" beyond the {self._limits.push_bytes} that this server takes; split the batch, or"
                " connect with less staleness="
            )
        else:
            grant = pushes.hold(count)
        booking.frame.release()
        booking.frame = grant
        booking.step_aside()

    def forsake(self, booking: Booking) -> None:
        """A push waits no longer: nobody wants its answer."""
        wire = self.wire
        self.answered(booking, wire.fails(booking.call.question, "failed", "canceled"))

    def ended(self, booking: Booking) -> None:
        """A call has ended; of its reply nothing is left to send."""
        self._release(booking)
        self._look_at_parts(booking)
        self._check_reading()
        if self._is_ending:
            self._end_if_done()

    def flush(self) -> None:
        """Hands replies to the socket as far as it takes them."""
        if not self.is_open:
            return
        while not self._is_full and (chunk := self.outbox.take(self._chunk_bytes)):
            self._port.write(chunk)
        if not self._is_full:
            self.outbox.handed_over()
        self._check_reading()
        if self._is_ending:
            self._end_if_done()

    # Inside.

    def _at_once_bytes(self) -> int:
        """What a lookup may cost to be answered where it is decoded: nothing may be before it."""
        if self._sequencer.calls or self.outbox or self._is_full or self._is_ending:
            return 0
        if self._is_taken_over or self._host.untried_lookups or self._access is not None:
            return 0
        replica = self._host.replica
        if replica is not None and replica.has_arriving:
            return 0
        return self._limits.inline_cost_bytes

    def _owes_bytes(self) -> bool:
        """True while the peer owes the rest of a frame, and we read it."""
        return self._is_reading and self.wire.is_inside_frame

    def _is_slow(self, now_s: float) -> bool:
        """A peer that trickles: over a whole frame, after the first while."""
        since, incoming = self._frame_since_s, self._incoming
        if since is None or incoming is None or not incoming.is_held:
            return False
        return now_s - since > 2 * self._limits.frame_s + incoming.count / _SLOWEST_BYTES_S

    def _abandon(self, limit: str, reason: str) -> None:
        self._host.metrics.reject(limit)
        log.info("connection closed: %s", reason)
        # Not close(), which would wait for the peer to read.
        self._port.abort()

    def _frame_granted(self) -> None:
        # The peer owed nothing while we did not read: its time begins at the next look.
        self._heard_s = self._frame_since_s = None
        self._check_reading()

    def _look(self, now_s: float, socket_bytes: int) -> int:
        """Begins what is timed from now on; bytes that wait for the peer to read."""
        if self._heard_s is None:
            self._heard_s = now_s
        if self._incoming is not None and self._incoming.is_held and self._frame_since_s is None:
            self._frame_since_s = now_s
        backlog = socket_bytes + self.outbox.unsent_bytes
        if backlog == 0 or backlog != self._backlog_bytes:
            self._written_s = now_s
        self._backlog_bytes = backlog
        return backlog

    def _take(self, events: Sequence[Any], whole: Grant | None, now_s: float) -> None:
        for event in events:
            if isinstance(event, _core.Login):
                # Always the last event: what came behind it is decoded now.
                self._take(self._log_in(event), whole, now_s)
                return
            frame = whole or self._host.frames.hold(event.frame_bytes)
            whole = None
            self._enter(Booking(event, frame, self._sequencer, now_s))
        if whole is not None:
            whole.release()
        self._write_outgoing()
        if self.wire.closing is not None:
            # The reason is on its way; what was asked before is still answered.
            self._is_ending = True
            self._check_reading()
            self._end_if_done()

    def _log_in(self, login: _core.Login) -> Sequence[Any]:
        try:
            if self._host.keyring is not None:
                self._access = self._host.keyring.login(login.token)
        except AuthError as error:
            self._host.metrics.reject("token")
            log.warning("login refused: peer=%s: %s", self.peer, error)
            return self.wire.reject(login.question, f"AuthError: {error}")
        self._is_logged_in = True
        return self.wire.accept(login.question)

    def _enter(self, booking: Booking) -> None:
        self._bookings.add(booking)
        booking.place = Place(VERBS[booking.call.verb].ORDER, partial(self._begin, booking))
        self._sequencer.enter(booking.place)

    def _begin(self, booking: Booking) -> None:
        """It is the call's turn in the order."""
        call = booking.call
        if not self.is_open:
            # The client will ask again over a new connection; pushes too, by number.
            self._release(booking)
        elif self._is_taken_over:
            reason = (
                f"UnavailableError: client {self._client_id!r} was taken over by a newer session;"
                " this one may do nothing any more: end it, or give it a client_id of its own"
            )
            self.answered(booking, self.wire.fails(call.question, "failed", reason))
        elif (unchanged := self._read_only(call.verb)) is not None:
            self.answered(booking, self.wire.fails(call.question, "failed", unchanged))
        elif isinstance(call, _core.ColdCall):
            self._take_reply(booking, VERBS[call.verb].REPLY_MAX_BYTES)
        elif (refusal := self._refusal(call)) is not None:
            self.answered(booking, self.wire.fails(call.question, "failed", refusal))
        elif VERBS[call.verb].ORDER is Order.READ and self.wire.cancelled(call.question):
            self.answered(booking, self.wire.fails(call.question, "failed", "canceled"))
        elif call.announced_bytes:
            self._collect(booking, call.announced_bytes)
        else:
            self._take_reply(booking, call.reply_bytes)

    def _take_reply(self, booking: Booking, count: int) -> None:
        """Starts the call once its reply has memory: at once, if it is small."""
        if count <= SMALL_REPLY_BYTES:
            booking.reply = self._host.replies.hold(count)
            self._start(booking)
        else:
            booking.reply = Grant(self._host.replies, count)
            booking.reply.take(partial(self._start, booking))

    def _read_only(self, verb: str) -> str | None:
        """Why a replica does not do what this verb asks, as a reason of the wire."""
        replica, kind = self._host.replica, VERBS[verb]
        if replica is None or kind.RIGHT is Right.READ:
            return None
        return (
            f"ReadOnlyError: {kind.spoken()}: this server is a replica of {replica.url} and changes"
            " nothing; ask that one"
        )

    def _refusal(self, call: _core.HotCall) -> str | None:
        """Why a call is not for the bearer of this token, as a reason of the wire."""
        if self._access is None:
            return None
        try:
            self.permit(call.verb, VERBS[call.verb].RIGHT, call.tables)
        except HybridPSError as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _start(self, booking: Booking) -> None:
        booking.is_started = True
        self._port.start(booking)

    def _collect(self, booking: Booking, count: int) -> None:
        """A push is to come in parts: it starts when there is room for all of them."""
        # The one before, if any, was not gone on with.
        self._forget_parts()
        limit = self._limits.push_bytes
        if count > limit:
            reason = (
                f"BadInputError: the push holds {count} bytes and this server takes {limit} in one;"
                " split the batch"
            )
            self.answered(booking, self.wire.fails(booking.call.question, "failed", reason))
            return
        self._collected = Grant(self._host.pushes, count)
        self._collected.take(partial(self._start, booking))

    def _look_at_parts(self, booking: Booking) -> None:
        """A call has ended: was it the last part of a push?"""
        if self._collected is None or VERBS[booking.call.verb].ORDER is not Order.PUSH:
            return
        self._part_s = None
        if not self.wire.is_collecting or not self.is_open:
            self._forget_parts()

    def _forget_parts(self) -> None:
        if self._collected is not None:
            self.wire.forget_parts()
            self._collected.release()
            self._collected = None

    def _is_push_stale(self, now_s: float) -> bool:
        """True if room is held for parts that do not come."""
        collected, limits = self._collected, self._limits
        if collected is None or not collected.is_held or self._sequencer.calls:
            return False
        if self._part_s is None or self.wire.is_inside_frame:
            self._part_s = now_s
        patience_s = limits.pressed_s if self._host.pushes.is_short else limits.frame_s
        return now_s - self._part_s > patience_s

    def _release(self, booking: Booking) -> None:
        self._bookings.discard(booking)
        booking.release()

    def _write_outgoing(self) -> None:
        frames = self.wire.outgoing()
        if frames and self.is_open:
            self.outbox.put(frames, None)
            self.flush()

    def _check_reading(self) -> None:
        """Reads if, and only if, nothing stands against more calls."""
        if not self.is_open:
            return
        wanted = not (
            self._is_ending
            or (self._incoming is not None and not self._incoming.is_held)
            or self.outbox.unsent_bytes >= self._limits.unsent_bytes
            or self._sequencer.calls >= CALLS_MAX
        )
        if wanted is not self._is_reading:
            self._is_reading = wanted
            self._port.read(on=wanted)

    def _end_if_done(self) -> bool:
        """Closes the socket if no answer is owed any more; it still sends what it holds."""
        if self._bookings or self.outbox:
            return False
        if self.is_open:
            self._port.close()
        return True
