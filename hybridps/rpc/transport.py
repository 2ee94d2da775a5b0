"""One connection on asyncio or uvloop: moves bytes between a socket and `_core.Connection`.

Bounds: bytes of frames and replies (with all other connections), calls in flight, unsent bytes;
at a bound the socket is not read, which pushes back to the peer. `Transport.check` ends a
connection that stalls inside a frame or does not read its replies. Never here: what verbs mean.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from hybridps import _core
from hybridps.errors import HybridPSError
from hybridps.rpc.budget import Budget
from hybridps.rpc.outbox import Outbox
from hybridps.rpc.sequencer import EXCLUSIVE, Sequencer

# Unsent bytes above which the transport asks us to wait. Small enough that what plain asyncio
# copies when the socket is full stays in cache.
WRITE_HIGH_BYTES = 256 << 10
# Threads that gather and send one reply: more would wait for each other's turn.
SENDERS = 2
# What a unix socket may hold; the system may allow less.
UNIX_SEND_BYTES = 2 << 20
# Calls of one connection that may run or wait; with small frames this bounds their memory.
CALLS_MAX = 256
# Replies up to this size do not stand in line for the budget: they are bounded by CALLS_MAX, and
# should not wait for what somebody else does not read.
SMALL_REPLY_BYTES = 64 << 10

log = logging.getLogger("hybridps.rpc")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """What one server lets its peers take.

    `inline_cost_bytes`: a hot call that moves no more runs on the loop, since a hop to a thread
    costs more; `inline_pushes`: also a push (not where a push waits for the device).
    """

    frame_bytes: int
    keys: int
    connections: int
    inflight_bytes: int
    unsent_bytes: int = 64 << 20
    inline_cost_bytes: int = 64 << 10
    inline_pushes: bool = True
    login_s: float = 60.0
    frame_s: float = 30.0
    unread_s: float = 30.0
    idle_s: float = 3600.0
    # Instead of frame_s and unread_s while somebody waits for bytes that this connection holds.
    pressed_s: float = 1.0


class Service(Protocol):
    """Who answers cold verbs."""

    async def call(self, caller: Any, verb: str, params: Any) -> bytes:
        """The results message of a call. HybridPSErrors reach the peer by class and text."""


class Workers(Protocol):
    """Who runs engine work off the loop."""

    def run(self, function: Callable[[], _T], /) -> Awaitable[_T]:
        """Runs the function on a thread."""


class Metrics(Protocol):
    """Who counts."""

    def observe(self, method: str, code: str, seconds: float) -> None:
        """One answered call."""

    def reject(self, limit: str) -> None:
        """One refusal."""


class Host:
    """What all connections of a server share."""

    def __init__(
        self,
        store: _core.Store,
        service: Service,
        workers: Workers,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.store = store
        self.service = service
        self.workers = workers
        self.metrics = metrics
        self.limits = limits
        # Apart, because a call that holds its frame waits for room for its reply.
        self.frames = Budget(limits.inflight_bytes // 2)
        self.replies = Budget(limits.inflight_bytes // 2)
        self.transports: set[Transport] = set()
        # The loop keeps only weak references to tasks.
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_draining = False
        # True: a call may wait for a device, which none may do on the loop, however small it is.
        self.may_wait = False

    def spawn(self, work: Any) -> None:
        """Runs a coroutine to its end, whatever becomes of the connection it serves."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Transport(asyncio.BufferedProtocol):
    """One connection. `session` is set by whoever answers hello."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limits = host.limits
        self._wire = _core.Connection(
            host.store, frame_limit=host.limits.frame_bytes, keys_limit=host.limits.keys
        )
        self._sequencer = Sequencer()
        self._socket: asyncio.Transport | None = None
        self._chunk_bytes = WRITE_HIGH_BYTES
        self._outbox = Outbox(host.replies.release)
        # Of streamed replies; made by the first.
        self._outlet: _core.Outlet | None = None
        # What waits for the socket to take more, and the streamed call that does.
        self._room: asyncio.Future[None] | None = None
        self._stuck: _core.HotCall | None = None
        # Bytes granted for the frame on its way; None: asked for, not granted yet.
        self._frame_bytes: int | None = 0
        self._is_logged_in = False
        self._is_reading = True
        self._is_writable = True
        self._is_ending = False
        now = time.monotonic()
        self._heard_s = now
        self._frame_since_s: float | None = None
        self._written_s = now
        self._backlog_bytes = 0

    @property
    def session(self) -> int:
        """Session of this connection's pushes; 0: hello was not said."""
        return self._wire.session

    @session.setter
    def session(self, session: int) -> None:
        self._wire.session = session

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection on, or refuses it at the limit."""
        self._socket = cast("asyncio.Transport", transport)
        self._socket.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        if type(transport).__module__.startswith("uvloop"):
            # uvloop keeps a reference to what the socket does not take, and copies nothing.
            self._chunk_bytes = 1 << 62
        own: socket.socket | None = transport.get_extra_info("socket")
        if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        elif own is not None:
            # A unix socket holds little by itself, and a large reply would take many turns between
            # the two sides. TCP finds its own size.
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BYTES)
        host = self._host
        if host.is_draining or len(host.transports) >= self._limits.connections:
            host.metrics.reject("connections")
            self.end("OverloadedError: this server has as many connections as it takes")
            return
        host.transports.add(self)

    def get_buffer(self, sizehint: int) -> Any:
        """Where the socket's next bytes go."""
        return self._wire.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        events = self._wire.received(nbytes)
        self._heard_s = time.monotonic()
        wanted = self._wire.frame_wanted
        granted = 0
        if self._frame_bytes and not wanted:
            # The frame is whole; a call takes over what was granted for it.
            granted, self._frame_bytes = self._frame_bytes, 0
        self._take(events, granted)
        if wanted and self._frame_bytes == 0:
            self._frame_bytes = None
            self._host.frames.take(wanted, lambda: self._frame_granted(wanted))
        if wanted and self._frame_since_s is None:
            self._frame_since_s = self._heard_s
        elif not wanted:
            self._frame_since_s = None
        self._check_reading()

    def eof_received(self) -> bool:
        """The peer sends no more, but may still read: what it asked is answered first."""
        self._is_reading = False
        self._is_ending = True
        return not self._end_if_done()

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """The socket's buffer has room."""
        self._is_writable = True
        self._written_s = time.monotonic()
        self._outbox.handed_over()
        self._wake()
        if self._is_ending:
            # Not now: asyncio would end a connection twice that is closed in here.
            asyncio.get_running_loop().call_soon(self._write)
        else:
            self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets what waits; calls that run go on, their answers are dropped."""
        del exc
        self._socket = None
        self._host.transports.discard(self)
        self._sequencer.clear()
        self._outbox.close()
        if self._outlet is not None:
            self._outlet.shutdown()
            self._outlet = None
        self._wake()
        if self._frame_bytes:
            self._host.frames.release(self._frame_bytes)
            self._frame_bytes = 0

    # Called by the listener.

    @property
    def is_idle(self) -> bool:
        """True if nothing was asked that is not answered, and all answers left."""
        if self._socket is None:
            return True
        return not (self._sequencer.calls or self._outbox or self._socket.get_write_buffer_size())

    def end(self, reason: str) -> None:
        """Tells the peer why, and closes now; what the socket's buffer holds is still sent."""
        self._wire.abort(reason)
        self._write_outgoing()
        self._is_ending = True
        if self._socket is not None:
            self._socket.close()

    def drain(self) -> None:
        """Takes no further call; closes when those in flight are answered."""
        self._is_ending = True
        self._check_reading()
        self._end_if_done()

    def check(self, now_s: float) -> None:
        """Ends the connection if it holds what others wait for, or holds on to nothing."""
        if self._socket is None:
            return
        limits, host = self._limits, self._host
        backlog = self._socket.get_write_buffer_size() + self._outbox.unsent_bytes
        if self._stuck is not None:
            backlog += self._stuck.unsent_bytes
        if backlog == 0 or backlog != self._backlog_bytes:
            self._written_s = now_s
        self._backlog_bytes = backlog
        is_pressed = host.replies.is_short and backlog > SMALL_REPLY_BYTES
        unread_s = limits.pressed_s if is_pressed else limits.unread_s
        frame_s = limits.pressed_s if host.frames.is_short else limits.frame_s
        if now_s - self._written_s > unread_s:
            self._abandon("unread", "replies were not read")
        elif self._is_inside_frame() and now_s - self._heard_s > frame_s:
            self._abandon("frame", "a message was begun and not finished")
        elif self._is_slow(now_s):
            self._abandon("frame", "a message took too long to arrive")
        elif not self._is_logged_in and now_s - self._heard_s > limits.login_s:
            self._abandon("login", "nobody logged in")
        elif backlog == 0 and not self._sequencer.calls and now_s - self._heard_s > limits.idle_s:
            self._abandon("idle", "nothing was asked for long")

    # Inside.

    def _is_inside_frame(self) -> bool:
        """True while the peer owes the rest of a frame, and we read it."""
        return self._is_reading and self._wire.is_inside_frame

    def _is_slow(self, now_s: float) -> bool:
        """A peer that trickles: below 64 KiB/s over a whole frame, after the first while."""
        since = self._frame_since_s
        if since is None or not self._frame_bytes:
            return False
        return now_s - since > 2 * self._limits.frame_s + self._frame_bytes / (64 << 10)

    def _abandon(self, limit: str, reason: str) -> None:
        self._host.metrics.reject(limit)
        log.info("connection closed: %s", reason)
        if self._socket is not None:
            # Not close(), which would wait for the peer to read.
            self._socket.abort()

    def _frame_granted(self, count: int) -> None:
        if self._socket is None:
            self._host.frames.release(count)
            return
        self._frame_bytes = count
        self._heard_s = time.monotonic()
        self._check_reading()

    def _take(self, events: list[Any], granted: int) -> None:
        while events:
            event = events.pop(0)
            if isinstance(event, _core.Login):
                # Every peer that reaches the socket may enter; tokens are not checked yet. A
                # login is always the last event: what came behind it is decoded now.
                self._is_logged_in = True
                events = self._wire.accept(event.question)
                continue
            if not granted:
                self._host.frames.add(event.frame_bytes)
            granted = 0
            self._enter(event)
        if granted:
            self._host.frames.release(granted)
        self._write_outgoing()
        if self._wire.closing is not None:
            # The reason is on its way; what was asked before is still answered.
            self._is_ending = True
            self._check_reading()
            self._end_if_done()

    def _enter(self, call: _core.HotCall | _core.ColdCall) -> None:
        is_exclusive = call.verb in EXCLUSIVE
        if isinstance(call, _core.ColdCall):
            self._sequencer.enter(is_exclusive, lambda: self._host.spawn(self._run_cold(call)))
        else:
            self._sequencer.enter(is_exclusive, lambda: self._start_hot(call))

    def _start_hot(self, call: _core.HotCall) -> None:
        if call.verb not in EXCLUSIVE and self._wire.cancelled(call.question):
            self._answered(call, self._wire.fails(call.question, "failed", "canceled"), 0)
        elif call.reply_bytes <= SMALL_REPLY_BYTES:
            self._host.replies.add(call.reply_bytes)
            self._run_hot(call)
        else:
            self._host.replies.take(call.reply_bytes, lambda: self._run_hot(call))

    def _run_hot(self, call: _core.HotCall) -> None:
        if self._socket is None:
            # The client will ask again over a new connection; pushes too, by number.
            self._finish(call, call.reply_bytes)
            return
        limits = self._limits
        is_small = call.cost <= limits.inline_cost_bytes and not self._host.may_wait
        if is_small and (limits.inline_pushes or call.verb not in EXCLUSIVE):
            started = time.perf_counter()
            reply = call.run()
            self._host.metrics.observe(call.verb, call.code, time.perf_counter() - started)
            self._answered(call, self._wire.answer(call.question) or reply, call.reply_bytes)
        elif call.is_streamed:
            self._host.spawn(self._stream(call))
        else:
            self._host.spawn(self._run_away(call))

    async def _run_away(self, call: _core.HotCall) -> None:
        started = time.perf_counter()
        try:
            reply = await self._host.workers.run(call.run)
            reply = self._wire.answer(call.question) or reply
        except Exception:
            log.exception("call failed inside the server: verb=%s", call.verb)
            reply = self._wire.fails(call.question, "failed", _INTERNAL)
        self._host.metrics.observe(call.verb, call.code, time.perf_counter() - started)
        self._answered(call, reply, call.reply_bytes)

    async def _stream(self, call: _core.HotCall) -> None:
        """Answers a call whose reply is sent while it is gathered, past the loop."""
        started = time.perf_counter()
        frame = self._outbox.begin(call.reply_bytes)
        instead = None
        try:
            if await self._outbox.turn(frame) and await self._is_emptied():
                instead = self._wire.answer(call.question)
                if instead is None:
                    await self._send(call)
                    self._host.metrics.observe(call.verb, call.code, time.perf_counter() - started)
        except Exception as error:
            if not isinstance(error, ConnectionError):
                log.exception("call failed inside the server: verb=%s", call.verb)
            if self._socket is not None:
                # Part of a reply was sent: nothing can follow it.
                self._socket.abort()
        self._outbox.end(frame, instead or b"")
        self._write()
        self._finish(call, 0)

    async def _is_emptied(self) -> bool:
        """Waits until the socket has taken all that it was handed; False if it is closed."""
        if self._socket is not None and self._socket.get_write_buffer_size():
            # Calls pause_writing now, and resume_writing when nothing is left.
            self._socket.set_write_buffer_limits(high=0)
            while self._socket is not None and not self._is_writable:
                await self._woken()
            if self._socket is not None:
                self._socket.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        return self._is_open()

    async def _send(self, call: _core.HotCall) -> None:
        while call.unsent_bytes and self._socket is not None and not self._socket.is_closing():
            if self._outlet is None:
                self._outlet = _core.Outlet(self._socket.get_extra_info("socket").fileno())
            outlet = self._outlet
            work = partial(call.send, outlet)
            senders = [self._host.workers.run(work) for _ in range(SENDERS)]
            if any(await _all(senders)) and self._is_open():
                await self._has_room(outlet.fileno(), call)

    async def _has_room(self, descriptor: int, call: _core.HotCall) -> None:
        """Waits until the socket takes more, or is closed."""
        loop = asyncio.get_running_loop()
        self._stuck = call
        loop.add_writer(descriptor, self._wake)
        try:
            await self._woken()
        finally:
            loop.remove_writer(descriptor)
            self._stuck = None

    async def _woken(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _run_cold(self, call: _core.ColdCall) -> None:
        try:
            results = await self._host.service.call(self, call.verb, call.params)
            reply = self._wire.returns(call.question, results)
        except HybridPSError as error:
            kind = "overloaded" if type(error).__name__ == "OverloadedError" else "failed"
            reason = f"{type(error).__name__}: {error}"
            reply = self._wire.fails(call.question, kind, reason)
        except Exception:
            log.exception("call failed inside the server: verb=%s", call.verb)
            reply = self._wire.fails(call.question, "failed", _INTERNAL)
        self._host.replies.add(len(reply))
        self._answered(call, reply, len(reply))

    def _answered(
        self, call: _core.HotCall | _core.ColdCall, reply: _core.Buffer, budgeted: int
    ) -> None:
        """Sends the reply, for which `budgeted` bytes were taken, and lets later calls start."""
        if self._is_open():
            self._outbox.put(reply, budgeted)
            budgeted = 0
            self._write()
        self._finish(call, budgeted)

    def _finish(self, call: _core.HotCall | _core.ColdCall, budgeted: int) -> None:
        if budgeted:
            self._host.replies.release(budgeted)
        self._host.frames.release(call.frame_bytes)
        self._sequencer.leave(call.verb in EXCLUSIVE)
        self._check_reading()
        if self._is_ending:
            self._end_if_done()

    def _is_open(self) -> bool:
        return self._socket is not None and not self._socket.is_closing()

    def _write(self) -> None:
        """Hands replies to the socket as far as it takes them."""
        if self._socket is None or self._socket.is_closing():
            return
        while self._is_writable and (chunk := self._outbox.take(self._chunk_bytes)):
            self._socket.write(chunk)
        if self._is_writable:
            self._outbox.handed_over()
        self._check_reading()
        if self._is_ending:
            self._end_if_done()

    def _write_outgoing(self) -> None:
        frames = self._wire.outgoing()
        if frames:
            self._outbox.put(frames, 0)
            self._write()

    def _check_reading(self) -> None:
        """Reads if, and only if, nothing stands against more calls."""
        if self._socket is None or self._socket.is_closing():
            return
        wanted = not (
            self._is_ending
            or self._frame_bytes is None
            or self._outbox.unsent_bytes >= self._limits.unsent_bytes
            or self._sequencer.calls >= CALLS_MAX
        )
        if wanted and not self._is_reading:
            self._is_reading = True
            self._socket.resume_reading()
        elif self._is_reading and not wanted:
            self._is_reading = False
            self._socket.pause_reading()

    def _end_if_done(self) -> bool:
        """Closes the socket if no answer is owed any more; it still sends what it holds."""
        if self._sequencer.calls or self._outbox:
            return False
        if self._socket is not None:
            self._socket.close()
        return True


_INTERNAL = "HybridPSError: the call failed inside the server; its log has the details"


async def _all(jobs: Iterable[Awaitable[_T]]) -> list[_T]:
    """What all jobs return, when all have ended; raises the first error of one."""
    results = await asyncio.gather(*jobs, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[_T]", results)
