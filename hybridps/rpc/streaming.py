"""Large replies, which engine threads gather and send past the event loop (`_core.Outlet`).

One at a time on a connection, in its turn in the outbox, when the socket has taken all before it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import TypeVar, cast

from hybridps import _core
from hybridps.rpc.booking import Booking
from hybridps.rpc.connection import Connection
from hybridps.rpc.host import Workers
from hybridps.rpc.limits import WRITE_HIGH_BYTES
from hybridps.verbs import VERBS

# Threads that gather and send one reply: more would wait for each other's turn.
SENDERS = 2

log = logging.getLogger("hybridps.rpc")

_T = TypeVar("_T")


class Streams:
    """The streamed replies of one connection."""

    def __init__(self, connection: Connection, socket: asyncio.Transport, workers: Workers) -> None:
        self._connection = connection
        self._socket = socket
        self._workers = workers
        # Past the loop only what needs not be encrypted can leave.
        self.are_possible = socket.get_extra_info("sslcontext") is None
        # Made by the first.
        self._outlet: _core.Outlet | None = None
        # What waits for the socket to take more, and the call that does.
        self._room: asyncio.Future[None] | None = None
        self._stuck: _core.HotCall | None = None

    @property
    def unsent_bytes(self) -> int:
        """Bytes of the reply that waits for the peer to read."""
        return 0 if self._stuck is None else self._stuck.unsent_bytes

    async def send(self, booking: Booking, call: _core.HotCall) -> bool:
        """Answers a call; True if its reply was gathered and sent."""
        connection = self._connection
        grant, booking.reply = booking.reply, None
        frame = connection.outbox.begin(grant)
        instead, is_sent = None, False
        try:
            if await connection.outbox.turn(frame) and await self._is_emptied():
                instead = connection.wire.answer(call.question)
                if instead is None:
                    await self._send(booking, call)
                    is_sent = True
        except Exception as error:
            if not isinstance(error, ConnectionError):
                log.exception("call failed inside the server: verb=%s", call.verb)
            # Part of a reply was sent: nothing can follow it.
            if connection.is_open:
                self._socket.abort()
        connection.outbox.end(frame, instead or b"")
        connection.flush()
        return is_sent

    def wake(self) -> None:
        """The socket may take more, or is closed."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def close(self) -> None:
        """The connection is lost: threads that send give up."""
        if self._outlet is not None:
            self._outlet.shutdown()
            self._outlet = None
        self.wake()
        del self._socket

    def _is_open(self) -> bool:
        return self._connection.is_open and not self._socket.is_closing()

    async def _is_emptied(self) -> bool:
        """Waits until the socket has taken all that it was handed; False if it is closed."""
        if self._connection.is_open and self._socket.get_write_buffer_size():
            # Says `full` now, and `room` when nothing is left.
            self._socket.set_write_buffer_limits(high=0)
            while self._connection.is_open and self._socket.get_write_buffer_size():
                await self._woken()
            if self._connection.is_open:
                self._socket.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        return self._is_open()

    async def _send(self, booking: Booking, call: _core.HotCall) -> None:
        while call.unsent_bytes and self._is_open():
            if self._outlet is None:
                self._outlet = _core.Outlet(self._socket.get_extra_info("socket").fileno())
            outlet = self._outlet

            def work(outlet: _core.Outlet = outlet) -> bool:
                booking.begin()
                return call.send(outlet)

            senders = [self._workers.run(VERBS[call.verb].LANE, work) for _ in range(SENDERS)]
            if any(await _all(senders)) and self._is_open():
                await self._has_room(outlet.fileno(), call)

    async def _has_room(self, descriptor: int, call: _core.HotCall) -> None:
        """Waits until the socket takes more, or is closed."""
        loop = asyncio.get_running_loop()
        self._stuck = call
        loop.add_writer(descriptor, self.wake)
        try:
            await self._woken()
        finally:
            loop.remove_writer(descriptor)
            self._stuck = None

    async def _woken(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room


async def _all(jobs: Iterable[Awaitable[_T]]) -> list[_T]:
    """What all jobs return, when all have ended; raises the first error of one."""
    results = await asyncio.gather(*jobs, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[_T]", results)
