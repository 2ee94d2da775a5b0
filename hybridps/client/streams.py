"""Asyncio transport: one connection a server, many calls in flight on it.

What a call is, its number, its deadline and whether it is sent again is the line's business
(`line`); this moves bytes between lines and sockets, and tells them how time goes by.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, cast

from hybridps import _core
from hybridps.client.line import Line
from hybridps.client.pending import Pending
from hybridps.client.retry import check_timeout
from hybridps.client.session import Session
from hybridps.client.urls import Address
from hybridps.client.worker import COPY, Worker, kept
from hybridps.security.credentials import NOBODY, Credentials, refusal
from hybridps.verbs.calls import Call, Hot
from hybridps.verbs.face import Addressed
from hybridps.verbs.router import ReadLimits

# What a socket is handed at once. Its own copy: a call that is given up has its arrays back.
_CHUNK_BYTES: Final = 256 << 10


class Stream(asyncio.BufferedProtocol):
    """One connection of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.transport: asyncio.Transport | None = None
        self.wire: _core.ClientConnection | None = None
        self.is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_CHUNK_BYTES)
        self._channel.opened(self)

    def get_buffer(self, sizehint: int) -> Any:
        """Where the next bytes go."""
        if self.wire is None:  # Nobody looks at them.
            return bytearray(max(sizehint, 1))
        return memoryview(self.wire.get_buffer(sizehint))  # TLS slices it.

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self._channel.received(self, nbytes)

    def pause_writing(self) -> None:
        """The socket is full."""
        self.is_full = True

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self.is_full = False
        self._channel.step()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whichever side."""
        self._channel.lost(self, exc or "the server closed the connection")

    def abort(self) -> None:
        """Closes the socket now."""
        if self.transport is not None:
            self.transport.abort()


class Channel:
    """One server: its line, and the connection that carries it."""

    def __init__(
        self, line: Line, credentials: Credentials, context: ssl.SSLContext | None
    ) -> None:
        self.line = line
        self._credentials = credentials
        self._context = context
        self._stream: Stream | None = None
        self._opener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._is_step_due = False

    def submit(self, pending: Pending) -> None:
        """Puts a call in line. What is submitted in one turn of the loop leaves together."""
        self.line.submit(pending)
        if not self._is_step_due:
            self._is_step_due = True
            asyncio.get_running_loop().call_soon(self.step)

    def give_up(self, pending: Pending) -> None:
        """The caller waits no longer."""
        self.line.give_up(pending)

    async def close(self) -> None:
        """Ends the connection; calls that wait fail."""
        self.line.close()
        self.step()
        if self._opener is not None:
            self._opener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opener

    def step(self) -> None:
        """Does what the line wants: sends, connects, watches the clock."""
        self._is_step_due = False
        line, now_s = self.line, time.monotonic()
        stream = self._stream
        if stream is not None and stream.wire is not line.wire:
            self._stream = None
            stream.abort()
        elif stream is not None:
            self._send(stream, now_s)
        if self._opener is None and line.is_connection_wanted(now_s):
            self._opener = asyncio.get_running_loop().create_task(self._open())
        self._watch(now_s)

    # Of the connection.

    def opened(self, stream: Stream) -> None:
        """A socket is connected."""
        if self.line.is_closed or self.line.wire is not None:
            stream.abort()
            return
        self._stream = stream
        self.line.opened(time.monotonic())
        stream.wire = self.line.wire
        self.step()

    def received(self, stream: Stream, count: int) -> None:
        """Bytes came."""
        if stream is self._stream and stream.wire is self.line.wire:
            self.line.received(count, time.monotonic())
        if not self._is_step_due and self._has_work():
            self.step()

    def lost(self, stream: Stream, cause: object) -> None:
        """A connection ended."""
        if stream is self._stream:
            self._stream = None
            if stream.wire is self.line.wire:
                self.line.lost(cause, time.monotonic())
            self.step()

    # Inside.

    def _has_work(self) -> bool:
        line, stream = self.line, self._stream
        return line.has_unsent or stream is None or stream.wire is not line.wire

    def _send(self, stream: Stream, now_s: float) -> None:
        transport = stream.transport
        while transport is not None and self.line.has_unsent and not stream.is_full:
            transport.write(self.line.take(_CHUNK_BYTES, now_s))

    async def _open(self) -> None:
        line, loop = self.line, asyncio.get_running_loop()
        host, port = line.address.host, line.address.port
        try:
            async with asyncio.timeout(line.open_within_s):
                if port is None:
                    await loop.create_unix_connection(lambda: Stream(self), host)
                else:
                    name = self._credentials.name_of(host) if self._context else None
                    await loop.create_connection(
                        lambda: Stream(self), host, port, ssl=self._context, server_hostname=name
                    )
        except OSError as error:
            if (refused := refusal(error, str(line.address))) is not None:
                line.refused(refused)
            line.lost(error if str(error) else "timed out", time.monotonic())
        finally:
            self._opener = None
        self.step()

    def _watch(self, now_s: float) -> None:
        """Sees to it that the line is checked in time."""
        if not self.line.is_wanted:
            return
        due_s = self.line.next_check_s(now_s)
        if self._timer is not None:
            if self._timer_s <= due_s:
                return
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - now_s), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.line.check(time.monotonic())
        self.step()


_Waiting = list[tuple[Channel, Pending]]


class StreamTransport:
    """Executes calls on servers, from one event loop."""

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
        self._credentials = credentials
        self._timeout = check_timeout(timeout, timeout)
        self._session = Session(addresses, client_id, credentials, wire_dtype, worker)
        context = credentials.context()  # One for all servers: its files are read once.
        self._channels = [Channel(line, credentials, context) for line in self._session.lines]
        # Pushes to rounds that were not waited for.
        self._late: deque[_Waiting] = deque()
        # One round of this worker at a time is begun.
        self._rounds = asyncio.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy connects by itself, at its first call, as a client of its own."""
        settings = (self._timeout, self._credentials, self.wire_dtype)
        return StreamTransport, (self._addresses, None, *settings, COPY if self.is_worker else None)

    @property
    def shards(self) -> int:
        """How many servers share the keys."""
        return len(self._channels)

    def limits(self) -> ReadLimits:
        """Of one read, as far as the servers were met."""
        return self._session.limits()

    async def connect(self) -> None:
        """Meets every server, so that a wrong URL shows at once."""
        try:
            await self._await([(channel, None) for channel in self._channels], self._timeout)
        except BaseException:
            await self.close()
            raise

    async def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order."""
        seconds = check_timeout(timeout, self._timeout)
        asked = [(self._channels[shard], call) for shard, call in addressed]
        if asked and self._session.is_together(asked[0][1]):
            async with self._rounds:
                return await self._push_together(asked, seconds)
        if self._late and not isinstance(asked[0][1], Hot):
            # It tells, or changes, what these pushes have not yet.
            async with self._rounds:
                await self._catch_up(0)
        return await self._await(asked, seconds)

    async def close(self) -> None:
        """Ends the connections; a second call does nothing."""
        try:
            async with self._rounds:
                await self._catch_up(0)
        finally:
            for channel in self._channels:
                await channel.close()
            # The loop closes sockets in its next turn; a caller may end the loop right after.
            await asyncio.sleep(0)

    async def _push_together(
        self, asked: Sequence[tuple[Channel, Any]], seconds: float
    ) -> list[Any]:
        session = self._session
        staleness = session.worker.staleness if session.worker is not None else 0
        try:
            greeting = session.greeting
            if greeting is not None:
                session.met(await self._await([(ch, greeting) for ch in self._channels], seconds))
            # What is acknowledged as a replay was no push to this round: it is to be asked anew.
            if staleness == 0 or (greeting is not None and asked[0][1].may_be_replay):
                replies = await self._await(asked, seconds)
                if any(replies):
                    session.lose_round()
                return replies
            mine = [(channel, kept(call)) for channel, call in asked]
            self._late.append(self._submit(mine, seconds))
            await self._catch_up(staleness)
        except BaseException:
            session.lose_round()
            while self._late:
                self._give_up(self._late.popleft())
            raise
        return [False] * len(asked)

    async def _catch_up(self, staleness: int) -> None:
        """Waits for all rounds but the last few."""
        while len(self._late) > staleness:
            await self._over(self._late[0])
            self._late.popleft()

    async def _await(
        self, asked: Sequence[tuple[Channel, Call[Any] | None]], seconds: float
    ) -> list[Any]:
        waiting = self._submit(asked, seconds)
        try:
            return await self._over(waiting)
        finally:
            self._give_up(waiting)

    def _submit(
        self, asked: Sequence[tuple[Channel, Call[Any] | None]], seconds: float
    ) -> _Waiting:
        made = self._session.pending([call for _, call in asked], seconds, time.monotonic())
        waiting = [(channel, pending) for (channel, _), pending in zip(asked, made, strict=True)]
        for channel, pending in waiting:
            channel.submit(pending)
        return waiting

    @staticmethod
    async def _over(waiting: _Waiting) -> list[Any]:
        for _, pending in waiting:
            if not pending.is_over:
                await _over(pending)
        return [pending.reply() for _, pending in waiting]

    @staticmethod
    def _give_up(waiting: _Waiting) -> None:
        for channel, pending in waiting:
            if not pending.is_over:
                channel.give_up(pending)


async def _over(pending: Pending) -> None:
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pending.wake = partial(_settle, over)
    await over


def _settle(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
