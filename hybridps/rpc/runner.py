"""Where calls are run: small lookups on the event loop if they need not wait there, others on
engine threads, cold ones by the service, large reads by `streaming`. Every way ends in
`Connection.answered` or `ended`.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from hybridps import _core
from hybridps.errors import HybridPSError
from hybridps.rpc.booking import Booking
from hybridps.rpc.connection import Connection
from hybridps.rpc.host import Host
from hybridps.rpc.streaming import Streams
from hybridps.rpc.together import Together
from hybridps.verbs import VERBS
from hybridps.verbs.calls import Hot
from hybridps.verbs.kinds import Lane

log = logging.getLogger("hybridps.rpc")

_INTERNAL = "HybridPSError: the call failed inside the server; its log has the details"
# Lookups that are not tried on the loop after so many in a row would have had to wait: where most
# rows are on NVMe a try is wasted, where few are it is not.
_PAUSE_MAX = 64


class Runner:
    """Runs the calls of all connections of a server."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # The loop keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        self.together = Together(host, self._spawn, self._observe)
        # Lookups that are not tried on the loop after the next refusal.
        self._pause = 1

    @property
    def is_busy(self) -> bool:
        """True while calls run off the loop."""
        return bool(self._tasks)

    def start(self, connection: Connection, streams: Streams, booking: Booking) -> None:
        """Runs a call to its end, whatever becomes of the connection it serves."""
        call = booking.call
        if isinstance(call, _core.ColdCall):
            self._spawn(self._run_cold(connection, booking, call))
        elif connection.rank is not None and VERBS[call.verb].IS_TOGETHER:
            self._spawn(self.together.bring(connection, booking, call))
        elif self._has_to_arrive(call):
            self._spawn(self._run_arrived(connection, streams, booking, call))
        elif (reply := self._try(booking, call)) is not None:
            self._observe(booking, call.code)
            connection.answered(booking, connection.wire.answer(call.question) or reply)
        elif call.is_streamed and streams.are_possible:
            self._spawn(self._stream(connection, streams, booking, call))
        else:
            self._spawn(self._run_away(connection, booking, call))

    def _has_to_arrive(self, call: _core.HotCall) -> bool:
        """Whether a replica may lack rows that the call reads."""
        replica = self._host.replica
        if replica is None or not replica.has_arriving or VERBS[call.verb].LANE is not Lane.READS:
            return False
        return any(replica.arriving(table) for table in call.tables)

    async def _run_arrived(
        self, connection: Connection, streams: Streams, booking: Booking, call: _core.HotCall
    ) -> None:
        """Runs a call once the rows that it reads are here."""
        replica = self._host.replica
        try:
            if replica is not None:
                await replica.bring(call.keys)
        except Exception as error:
            code, reason = "HybridPSError", _INTERNAL
            if isinstance(error, HybridPSError):
                code = type(error).__name__
                reason = f"{code}: {error}"
            else:
                log.exception("call failed inside the server: verb=%s", call.verb)
            self._observe(booking, code)
            connection.answered(booking, connection.wire.fails(call.question, "failed", reason))
            return
        if call.is_streamed and streams.are_possible:
            await self._stream(connection, streams, booking, call)
        else:
            await self._run_away(connection, booking, call)

    def _try(self, booking: Booking, call: _core.HotCall) -> _core.Buffer | None:
        """The reply, if it is had without waiting: nothing else may run on the loop."""
        verb = VERBS[call.verb]
        if issubclass(verb, Hot) and verb.IS_INSTANT:
            booking.begun_s = time.monotonic()
            return call.run()
        if call.cost > self._host.limits.inline_cost_bytes:
            return None
        if self._host.untried_lookups:
            self._host.untried_lookups -= 1
            return None
        began_s = time.monotonic()
        reply = call.try_run()
        if reply is not None:
            booking.begun_s = began_s
            self._pause = 1
        elif verb.LANE is Lane.READS:
            self._host.untried_lookups = self._pause
            self._pause = min(2 * self._pause, _PAUSE_MAX)
        return reply

    def _observe(self, booking: Booking, code: str) -> None:
        now_s = time.monotonic()
        waited_s = (booking.begun_s or now_s) - booking.received_s
        self._host.metrics.observe(booking.call.verb, code, now_s - booking.received_s, waited_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_away(
        self, connection: Connection, booking: Booking, call: _core.HotCall
    ) -> None:
        def work() -> _core.Buffer:
            booking.begin()
            return call.run()

        try:
            reply = await self._host.workers.run(VERBS[call.verb].LANE, work)
            reply = connection.wire.answer(call.question) or reply
        except Exception:
            log.exception("call failed inside the server: verb=%s", call.verb)
            reply = connection.wire.fails(call.question, "failed", _INTERNAL)
        self._observe(booking, call.code)
        connection.answered(booking, reply)

    async def _stream(
        self, connection: Connection, streams: Streams, booking: Booking, call: _core.HotCall
    ) -> None:
        if await streams.send(booking, call):
            self._observe(booking, call.code)
        connection.ended(booking)

    async def _run_cold(
        self, connection: Connection, booking: Booking, call: _core.ColdCall
    ) -> None:
        code = "ok"
        try:
            service = self._host.service
            results = await service.call(connection, call.verb, call.params, booking.begin)
            reply = connection.wire.returns(call.question, results)
        except HybridPSError as error:
            code = type(error).__name__
            kind = "overloaded" if code == "OverloadedError" else "failed"
            reason = f"{code}: {error}"
            reply = connection.wire.fails(call.question, kind, reason)
        except Exception:
            log.exception("call failed inside the server: verb=%s", call.verb)
            code = "HybridPSError"
            reply = connection.wire.fails(call.question, "failed", _INTERNAL)
        self._observe(booking, code)
        booked, booking.reply = booking.reply, self._host.replies.hold(len(reply))
        if booked is not None:
            booked.release()
        connection.answered(booking, reply)
