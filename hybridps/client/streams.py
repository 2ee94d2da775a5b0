"""Asyncio transport: one connection a server, many calls in flight on it.

Calls leave in the order in which verbs hand them over, and after a lost connection those without
an answer leave again in that order, pushes under their old number: so pushes apply in send order,
once, and a call sees exactly the pushes before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from hybridps import _core
from hybridps.client import messages
from hybridps.client.calls import Call, Push
from hybridps.client.messages import LostError, ServerInfo
from hybridps.client.remote import Identity
from hybridps.client.retry import Deadline, check_timeout, delays
from hybridps.client.urls import Address
from hybridps.client.verbs import Addressed
from hybridps.errors import HybridPSError, UnavailableError


class Pending:
    """A call that waits for its answer; `question` is set while a connection carries it."""

    __slots__ = ("answer", "call", "number", "question", "sends")

    def __init__(self, call: Call, number: int) -> None:
        self.call = call
        self.number = number
        self.question: int | None = None
        self.sends = 0
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Wire(asyncio.BufferedProtocol):
    """One connection: bytes to the compiled state machine, answers to `owner`."""

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        self.machine = _core.ClientConnection()
        self.transport: asyncio.Transport | None = None
        self.hello: asyncio.Future[_core.Answer] = asyncio.get_running_loop().create_future()
        self.hello_question = -1
        self.is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello."""
        self.transport = cast("asyncio.Transport", transport)
        identity = self._owner.identity
        self.hello_question, data = self.machine.start(identity.session, identity.client_id)
        self.transport.write(data)

    def get_buffer(self, sizehint: int) -> Any:
        """Where the next bytes go."""
        return self.machine.get_buffer(max(sizehint, 1 << 16))

    def buffer_updated(self, nbytes: int) -> None:
        """Hands answers over."""
        for answer in self.machine.received(nbytes):
            if answer.question != self.hello_question:
                self._owner.answered(answer)
            elif not self.hello.done():
                self.hello.set_result(answer)
        if self.machine.closed is not None and self.transport is not None:
            self.transport.abort()

    def pause_writing(self) -> None:
        """The socket is full."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self.is_paused = False
        self._owner.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the owner why."""
        cause = self.machine.closed or exc or "the server closed the connection"
        if not self.hello.done():
            self.hello.set_exception(LostError(str(cause)))
            self.hello.exception()
        self._owner.lost(self, cause)

    def send(self, call: Call, number: int) -> int:
        """Hands a call to the socket; returns its question."""
        if self.transport is None:
            raise UnavailableError("the connection is not open")
        question, buffers = messages.begin(self.machine, call, number)
        for view in messages.views(buffers):
            self.transport.write(view)
        return question

    @property
    def has_unsent(self) -> bool:
        """True while bytes of calls wait for the socket."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0


class Connection:
    """One server, reconnected as often as calls wait for it."""

    def __init__(self, address: Address, shard: int, shards: int, identity: Identity) -> None:
        self.address = address
        self.identity = identity
        self._place = (shard, shards)
        self._wire: Wire | None = None
        self._info: ServerInfo | None = None
        self._unsent: deque[Pending] = deque()
        # In send order, which a dict keeps.
        self._sent: dict[int, Pending] = {}
        self._last_push = 0
        self._connector: asyncio.Task[None] | None = None
        self._cause: object = "no connection"
        self._is_closed = False

    def submit(self, call: Call) -> Pending:
        """Puts a call in line; pushes are numbered here."""
        if self._is_closed:
            raise UnavailableError("this client is closed; connect again")
        if isinstance(call, Push):
            self._last_push += 1
        pending = Pending(call, self._last_push)
        self._unsent.append(pending)
        self.pump()
        return pending

    async def reply(self, pending: Pending, deadline: Deadline) -> Any:
        """The reply of a call in line. Raises its error, DeadlineError or UnavailableError."""
        try:
            return await asyncio.wait_for(pending.answer, deadline.left)
        except TimeoutError as error:
            if isinstance(error, HybridPSError):
                raise
            if pending.question is None and self._info is None:
                raise deadline.unavailable(self.address, self._cause) from None
            raise deadline.error(messages.verb_of(pending.call), self.address) from None
        finally:
            self._give_up(pending)

    async def connect(self, deadline: Deadline) -> None:
        """Meets the server. Raises UnavailableError when it is not there in time."""
        cause: object = "no answer"
        for delay in delays():
            try:
                async with asyncio.timeout(deadline.left):
                    await self._connect()
            except HybridPSError:
                raise
            except (OSError, LostError) as error:
                cause = str(error) or "timed out"
            else:
                return
            if deadline.left <= delay:
                raise deadline.unavailable(self.address, cause)
            await asyncio.sleep(delay)

    def pump(self) -> None:
        """Sends what is in line while the socket takes it."""
        wire, info = self._wire, self._info
        if wire is None or info is None:
            if self._unsent and self._connector is None and not self._is_closed:
                self._connector = asyncio.create_task(self._reconnect())
            return
        while self._unsent and not wire.is_paused:
            pending = self._unsent.popleft()
            if pending.answer.done():
                continue
            try:
                messages.check_limits(info, pending.call, str(self.address))
                pending.question = wire.send(pending.call, pending.number)
                pending.sends += 1
            except HybridPSError as error:
                pending.answer.set_exception(error)
            else:
                self._sent[pending.question] = pending

    def answered(self, answer: _core.Answer) -> None:
        """Hands an answer to its caller; answers that nobody waits for are dropped."""
        pending = self._sent.get(answer.question)
        if pending is None:
            return
        try:
            reply = messages.finish(pending.call, answer, is_first=pending.sends == 1)
        except LostError:
            # The server is going away: the call is sent again, in its place in the order.
            if self._wire is not None and self._wire.transport is not None:
                self._wire.transport.abort()
            return
        except HybridPSError as error:
            _settle(pending, error=error)
        else:
            _settle(pending, reply)
        del self._sent[answer.question]

    def lost(self, wire: Wire, cause: object) -> None:
        """The connection ended: calls without an answer go back in line, in order."""
        if wire is not self._wire:
            return
        self._wire = self._info = None
        self._cause = cause
        for pending in reversed(self._sent.values()):
            pending.question = None
            self._unsent.appendleft(pending)
        self._sent.clear()
        self.pump()

    async def close(self) -> None:
        """Ends the connection; calls that wait fail."""
        self._is_closed = True
        if self._connector is not None:
            self._connector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connector
        wire, self._wire, self._info = self._wire, None, None
        if wire is not None and wire.transport is not None:
            wire.transport.abort()
        self._fail(UnavailableError("this client was closed while a call waited; connect again"))

    async def _reconnect(self) -> None:
        try:
            for delay in delays():
                try:
                    await self._connect()
                except HybridPSError as error:
                    self._fail(error)
                except (OSError, LostError) as error:
                    self._cause = error
                if self._info is not None or not self._unsent:
                    return
                await asyncio.sleep(delay)
        finally:
            self._connector = None
            if self._info is not None:
                self.pump()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        wire = Wire(self)
        if self.address.port is None:
            transport, _ = await loop.create_unix_connection(lambda: wire, self.address.host)
        else:
            where = (self.address.host, self.address.port)
            transport, _ = await loop.create_connection(lambda: wire, *where)
        try:
            info = messages.read_hello(await wire.hello)
            messages.check_server(info, str(self.address), *self._place)
        except BaseException:
            transport.abort()
            raise
        self._wire, self._info = wire, info

    def _fail(self, error: HybridPSError) -> None:
        for pending in (*self._sent.values(), *self._unsent):
            _settle(pending, error=error)
        self._sent.clear()
        self._unsent.clear()

    def _give_up(self, pending: Pending) -> None:
        """Forgets a call whose caller has its answer, or no longer wants it."""
        if pending.question is None:
            with contextlib.suppress(ValueError):
                self._unsent.remove(pending)
        elif self._sent.pop(pending.question, None) is not None and self._wire is not None:
            self._wire.machine.forget(pending.question)
            if self._wire.has_unsent and self._wire.transport is not None:
                # Its arrays are the caller's again, and may change before they are sent.
                self._wire.transport.abort()


def _settle(pending: Pending, reply: Any = None, error: HybridPSError | None = None) -> None:
    if pending.answer.done():
        return
    if error is None:
        pending.answer.set_result(reply)
    else:
        pending.answer.set_exception(error)


class StreamTransport:
    """Executes calls on servers, from one event loop."""

    def __init__(self, addresses: Sequence[Address], client_id: str | None, timeout: float) -> None:
        identity = Identity(client_id)
        self._timeout = timeout
        self._connections = [
            Connection(address, shard, len(addresses), identity)
            for shard, address in enumerate(addresses)
        ]

    @property
    def shards(self) -> int:
        """How many servers share the keys."""
        return len(self._connections)

    async def connect(self) -> None:
        """Meets every server, so that a wrong URL shows at once."""
        deadline = Deadline(self._timeout)
        try:
            await asyncio.gather(*(c.connect(deadline) for c in self._connections))
        except BaseException:
            await self.close()
            raise

    async def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order."""
        deadline = Deadline(check_timeout(timeout, self._timeout))
        connections = [self._connections[shard] for shard, _ in addressed]
        waiting = [
            connection.reply(connection.submit(call), deadline)
            for connection, (_, call) in zip(connections, addressed, strict=True)
        ]
        if len(waiting) == 1:
            return [await waiting[0]]
        replies = await asyncio.gather(*waiting, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    async def close(self) -> None:
        """Ends the connections; a second call does nothing."""
        for connection in self._connections:
            await connection.close()
